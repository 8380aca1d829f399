"""Scores of a block of mentions against every entity of an index, one block of entities at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from m3el_fast.features import Vectors
from m3el_fast.matching import Matcher, Side, unit
from m3el_fast.ops import Precision, inner_scores
from m3el_fast.scoring.entities import Block, Entities


@dataclass(frozen=True)
class ScannedBlock:
    """Scores of M mentions and the entities start..stop-1 of an index, on the device that scored them.

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
    """Scans the entities of an index (spec sections 5.1 and 5.6).

    Args:
        precision: of G2L's products.
    """

    def __init__(self, matcher: Matcher, entities: Entities, precision: Precision) -> None:
        self.matcher, self.entities, self.precision = matcher, entities, precision

    def scan(self, mentions: Side, size: int, names: Collection[str]) -> Iterator[ScannedBlock]:
        """The scores ``names`` of ``mentions`` (on the entities' device) and all rows of the index, removed ones too,
        in blocks of ``size`` entities."""
        for block in self.entities.blocks(size):
            yield self.score(mentions, block, names)

    def score(self, mentions: Side, block: Block, names: Collection[str]) -> ScannedBlock:
        """Those of one block; nothing waits for the device."""
        parts: Vectors = {}
        if self.matcher.text is not None:
            parts["text"] = self.matcher.text.score(
                unit(mentions.item, "text"), unit(block.item, "text"), precision=self.precision
            )
        distinct = None
        if self.matcher.image is not None:
            distinct = self._images(mentions, block)
            parts["image"] = distinct[:, block.place]
        for name, side in unit(mentions.item, "cross").items():
            parts[name] = inner_scores(side, block.item[f"cross.{name}"])
        scores = vars(self.matcher.combine(parts))
        wanted = {name: clean(score) for name, score in scores.items() if name in names and score is not None}
        distinct = None if distinct is None else clean(distinct)
        return ScannedBlock(block.start, block.stop, wanted, distinct, block.images, block.place)

    def _images(self, mentions: Side, block: Block) -> Tensor:
        """Image scores [M, u] of the mentions and the block's distinct images."""
        assert self.matcher.image is not None and mentions.image_index is not None
        strips = [
            self.matcher.image.score(mentions.visual, visual, rows, self.precision) for visual, rows in block.visual
        ]
        return torch.cat(strips, dim=1)[mentions.image_index]


def clean(scores: Tensor) -> Tensor:
    """NaN as -inf, in place: behind every number."""
    return scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
