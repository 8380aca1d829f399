"""An index in memory with planted features, removed rows and several files, and the scores of all its pairs in fp64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor

from m3el_fast.features import FeatureDims, Features, Scores
from m3el_fast.matching import Side
from m3el_fast.models import MELModel

Gathered = Iterator[tuple[slice, dict[str, Tensor], Tensor]]


def random_features(dims: FeatureDims, count: int, images: int, seed: int) -> Features:
    """Features of ``count`` items that share ``images`` images."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (count,), generator=g)
    return Features(
        torch.randn(count, dims.text_global, generator=g),
        torch.randn(count, 7, dims.text_local, generator=g),
        torch.randn(images, dims.image_global, generator=g),
        torch.randn(images, 5, dims.image_local, generator=g),
        torch.randint(0, images, (count,), generator=g),
        torch.arange(7) < lengths[:, None],
    )


class MemoryIndex:
    """What a scorer reads of an ``EntityIndex``, over one side in memory.

    Args:
        text_key: [n] int64; dead: removed rows; cuts, visual_cuts: rows at which another file begins.
    """

    def __init__(
        self,
        side: Side,
        text_key: Tensor,
        dtype: torch.dtype = torch.bfloat16,
        dead: Sequence[int] = (),
        cuts: Sequence[int] = (),
        visual_cuts: Sequence[int] = (),
    ) -> None:
        assert side.image_index is not None
        self.side = Side(self._stored(side.item, dtype), self._stored(side.visual, dtype), side.image_index)
        self.rows, self.text_key, self.image_index = len(text_key), text_key, side.image_index
        self.visual_rows = max(len(tensor) for tensor in (*side.visual.values(), self.image_index.unique()))
        self.union_key = text_key * (int(self.image_index.max()) + 1) + self.image_index
        self.live = torch.ones(self.rows, dtype=torch.bool)
        self.live[list(dead)] = False
        self.ids = [f"Q{row}" for row in range(self.rows)]
        self._cuts, self._visual_cuts = [0, *cuts, self.rows], [0, *visual_cuts, self.visual_rows]

    @staticmethod
    def _stored(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: t.to(dtype) if name.endswith(("query", "gate")) else t for name, t in tensors.items()}

    def __len__(self) -> int:
        return int(self.live.sum())

    def check(self, model: MELModel) -> None:
        """It is of every model."""

    def find(self, ids: Sequence[str]) -> Tensor:
        rows = {self.ids[row]: row for row in self.live.nonzero()[:, 0].tolist()}
        return torch.tensor([rows.get(one, -1) for one in ids], dtype=torch.int64)

    def blocks(self, size: int) -> Iterator[SimpleNamespace]:
        for first, last in pairwise(self._cuts):
            for start in range(first, last, size):
                rows = slice(start, min(start + size, last))
                item = {name: tensor[rows] for name, tensor in self.side.item.items()}
                yield SimpleNamespace(
                    start=rows.start,
                    stop=rows.stop,
                    item=item,
                    image_index=self.image_index[rows],
                    live=self.live[rows],
                )

    def items(self, rows: Tensor) -> Gathered:
        return self._gather(self.side.item, self._cuts, rows)

    def visual(self, rows: Tensor) -> Gathered:
        return self._gather(self.side.visual, self._visual_cuts, rows)

    @staticmethod
    def _gather(tensors: dict[str, Tensor], cuts: list[int], rows: Tensor) -> Gathered:
        assert (rows.diff() >= 0).all()
        for first, last in pairwise(cuts):
            start, stop = (int((rows < bound).sum()) for bound in (first, last))
            if stop > start:
                file = {name: tensor[first:last] for name, tensor in tensors.items()}
                yield slice(start, stop), file, rows[start:stop] - first


def oracle(model: MELModel, index: MemoryIndex, mentions: Side) -> Scores:
    """Scores [M, rows] fp64 of all pairs on the stored features, removed rows included."""

    def double(side: Side) -> Side:
        return Side(
            {k: v if v.dtype == torch.bool else v.double() for k, v in side.item.items()},
            {k: v.double() for k, v in side.visual.items()},
            side.image_index,
        )

    with torch.inference_mode():
        scores: Scores = copy.deepcopy(model.matcher).double().score(double(mentions), double(index.side))
    return scores


def check_topk(rows: Tensor, score: Tensor, live: Tensor, near: float = 1e-4) -> None:
    """``rows`` [M, k] are the k best by the oracle's ``score`` [M, rows] but for ties within ``near``."""
    expected = score.masked_fill(~live, -torch.inf).sort(dim=1, descending=True, stable=True)
    found = score.gather(1, rows)
    assert live[rows].all()
    assert all(len(set(one)) == len(one) for one in rows.tolist())
    assert ((found - expected.values[:, : rows.shape[1]]).abs() <= near).all()
    # where the oracle has no near tie, rows agree
    gaps = expected.values.diff(dim=1).abs() > near
    alone = torch.ones_like(score, dtype=torch.bool)
    alone[:, 1:] &= gaps
    alone[:, :-1] &= gaps
    differs = (rows != expected.indices[:, : rows.shape[1]]) & alone[:, : rows.shape[1]]
    assert not differs.any()


def check_ranks(ranks: Tensor, gold: Tensor, score: Tensor, key: Tensor, live: Tensor, near: float = 1e-4) -> None:
    """``ranks`` [M] are those by the oracle's ``score`` [M, rows] but for ties within ``near``; entities with the
    gold's ``key`` [rows] are level with it."""
    own = score.gather(1, gold[:, None])
    level = (key == key[gold][:, None]) & live
    others = live & ~level
    base = 1 + (level.sum(1) - 1) / 2
    low = base + ((score > own + near) & others).sum(1)
    high = base + ((score > own - near) & others).sum(1)
    assert ((low <= ranks) & (ranks <= high)).all()
