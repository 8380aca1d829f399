"""Scores of listed pairs from the stored features: what settles a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from m3el_fast.features import Vectors
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Matcher, Side, unit
from m3el_fast.ops import Precision, inner_pairs
from m3el_fast.scoring.identity import Identity

_CHUNK = 8192  # pairs gathered at a time: two vectors of 700 fp32 values each are 46 MB

Gather = Callable[[Tensor], Iterator[tuple[slice, Mapping[str, Tensor], Tensor]]]
Score = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]


class PairScorer:
    """Component scores of pairs of mentions and entities.

    Each distinct pair of a mention and an entity's leader (:class:`Identity`) is scored once, so that identical
    entities have bitwise identical scores.

    Args:
        precision: of G2L's products.
    """

    def __init__(
        self, matcher: Matcher, index: EntityIndex, identity: Identity, precision: Precision, device: torch.device
    ) -> None:
        self.matcher, self.index, self.identity = matcher, index, identity
        self.precision, self.device = precision, device

    def scores(self, mentions: Side, mention: Tensor, row: Tensor, component: str = "union") -> Vectors:
        """Scores [P] by name of the pairs (mention[i], row[i]), [P] int64 rows of ``mentions`` and of the index.

        Args:
            component: what is needed: ``text``, ``image``, ``cross`` (with ``t2v`` and ``v2t``), or ``union`` for all.
        """
        parts: Vectors = {}
        if component in ("text", "union") and self.matcher.text is not None:
            parts["text"] = self._text(mentions, mention, row)
        if component in ("image", "union") and self.matcher.image is not None:
            parts["image"] = self.image(mentions, mention, self.index.image_index[row])
        if component in ("cross", "union") and self.matcher.cross is not None:
            parts |= self._cross(mentions, mention, row)
        scores = {name: score for name, score in vars(self.matcher.combine(parts)).items() if score is not None}
        return scores if component == "union" else {n: score for n, score in scores.items() if n != "union"}

    def image(self, mentions: Side, mention: Tensor, image: Tensor) -> Tensor:
        """Image scores [P] of the pairs (mention[i], image[i]), ``image`` [P] int64 rows of the distinct images."""
        assert mentions.image_index is not None and self.matcher.image is not None
        matching = self.matcher.image

        def score(visual: Mapping[str, Tensor], own: Tensor, local: Tensor) -> Tensor:
            return matching.pairs(mentions.visual, visual, own, local, self.precision)

        own = mentions.image_index.cpu()[mention]
        return self._distinct(own, image, self.index.visual, score)

    def _text(self, mentions: Side, mention: Tensor, row: Tensor) -> Tensor:
        assert self.matcher.text is not None
        matching, side = self.matcher.text, unit(mentions.item, "text")

        def score(item: Mapping[str, Tensor], own: Tensor, local: Tensor) -> Tensor:
            return matching.pairs(side, unit(item, "text"), own, local, self.precision)

        return self._distinct(mention, self.identity.text[row], self.index.items, score)

    def _cross(self, mentions: Side, mention: Tensor, row: Tensor) -> Vectors:
        parts = {}
        for name, side in unit(mentions.item, "cross").items():

            def score(
                item: Mapping[str, Tensor], own: Tensor, local: Tensor, name: str = name, side: Tensor = side
            ) -> Tensor:
                return inner_pairs(side, item[f"cross.{name}"], own, local)

            parts[name] = self._distinct(mention, self.identity.both[row], self.index.items, score)
        return parts

    def _distinct(self, mention: Tensor, row: Tensor, gather: Gather, score: Score) -> Tensor:
        """Scores [P] of pairs, each distinct one computed once, file by file in the order of their rows."""
        if not len(row):
            return torch.empty(0)
        width = int(mention.max()) + 1
        pairs, back = (row * width + mention).unique(return_inverse=True)  # sorted by row
        values = torch.empty(len(pairs))
        for start in range(0, len(pairs), _CHUNK):
            own, rows = pairs[start : start + _CHUNK] % width, pairs[start : start + _CHUNK] // width
            for piece, tensors, local in gather(rows):
                order = own[piece].argsort(stable=True)  # kernels are fastest with equal mentions together
                tensors, local = fetch(tensors, local[order], self.device)
                found = score(tensors, own[piece][order].to(self.device), local)
                values[start + piece.start + order] = found.cpu()
        return values[back]


def fetch(tensors: Mapping[str, Tensor], rows: Tensor, device: torch.device) -> tuple[Mapping[str, Tensor], Tensor]:
    """Mapped tensors and the rows wanted of them: as they are on a CPU, else the rows alone, on ``device``."""
    if device.type == "cpu":
        return tensors, rows
    wanted = {name: tensor[rows].to(device) for name, tensor in tensors.items()}
    return wanted, torch.arange(len(rows), device=device)
