"""Scores of a block of mentions against every entity of an index, one block of entities at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from m3el_fast.features import Vectors
from m3el_fast.index import EntityBlock, EntityIndex
from m3el_fast.matching import Matcher, Side, unit
from m3el_fast.ops import Precision, inner_scores
from m3el_fast.scoring.pairs import fetch

_PAIRS = 64 * 2048  # pairs of a block: 0.5 MB a component
_MOST_ENTITIES = 16384  # entities of a block where mentions are few


@dataclass(frozen=True)
class ScannedBlock:
    """Scores of M mentions and the entities start..stop-1 of an index.

    Attributes:
        scores: by name, [M, n] fp32; NaN became -inf.
        distinct: [M, u] image scores of the distinct images in the block, where the model has an image unit.
        images: [u] int64, their rows in the index; place: [n] int64, the column of ``distinct`` of each entity.
    """

    start: int
    stop: int
    scores: Vectors
    distinct: Tensor | None
    images: Tensor
    place: Tensor


class Scanner:
    """Scans an index (spec sections 5.1 and 5.6).

    Args:
        precision: of G2L's products; block: entities at a time, None = by the number of mentions.
    """

    def __init__(
        self, matcher: Matcher, index: EntityIndex, precision: Precision, device: torch.device, block: int | None
    ) -> None:
        self.matcher, self.index, self.precision, self.device, self.block = matcher, index, precision, device, block

    def scan(self, mentions: Side) -> Iterator[ScannedBlock]:
        """The scores of ``mentions`` (on the scorer's device) and all rows of the index, removed ones too."""
        size = self.block or min(_MOST_ENTITIES, max(1, _PAIRS // max(1, _mentions(mentions))))
        for block in self.index.blocks(size):
            yield self._scan(mentions, block)

    def _scan(self, mentions: Side, block: EntityBlock) -> ScannedBlock:
        parts: Vectors = {}
        item = {name: tensor.to(self.device) for name, tensor in block.item.items()}
        if self.matcher.text is not None:
            parts["text"] = self.matcher.text.score(
                unit(mentions.item, "text"), unit(item, "text"), precision=self.precision
            )
        images, place = distinct_rows(block.image_index)
        distinct = None
        if self.matcher.image is not None:
            distinct = self._images(mentions, images)
            parts["image"] = distinct[:, place.to(self.device)]
        for name, side in unit(mentions.item, "cross").items():
            parts[name] = inner_scores(side, item[f"cross.{name}"])
        scores = {name: _clean(score) for name, score in vars(self.matcher.combine(parts)).items() if score is not None}
        distinct = None if distinct is None else _clean(distinct)
        return ScannedBlock(block.start, block.stop, scores, distinct, images, place)

    def _images(self, mentions: Side, images: Tensor) -> Tensor:
        """Image scores [M, u] of the mentions and the distinct images ``images`` [u] int64, ascending."""
        assert self.matcher.image is not None and mentions.image_index is not None
        strips = []
        for _, tensors, local in self.index.visual(images):
            visual, rows = fetch(tensors, local, self.device)
            strips.append(self.matcher.image.score(mentions.visual, visual, rows, self.precision))
        return torch.cat(strips, dim=1)[mentions.image_index]


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values of ``rows`` [n] int64, ascending, and the place of each row among them.

    As ``unique(return_inverse=True)`` without its sort, which costs a third of a scan with one mention.
    """
    low = int(rows.min())
    shifted = rows - low
    seen = torch.zeros(int(shifted.max()) + 1, dtype=torch.bool)
    seen[shifted] = True
    distinct = seen.nonzero()[:, 0]
    place = torch.empty(len(seen), dtype=torch.int64)
    place[distinct] = torch.arange(len(distinct))
    return distinct + low, place[shifted]


def _clean(scores: Tensor) -> Tensor:
    """On the CPU, NaN as -inf: behind every number."""
    return scores.cpu().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _mentions(side: Side) -> int:
    assert side.image_index is not None
    return len(side.image_index)
