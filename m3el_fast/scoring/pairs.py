"""Scores of listed pairs from the stored features: what settles a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from m3el_fast.features import Vectors
from m3el_fast.matching import Matcher, Side, unit
from m3el_fast.ops import Precision, inner_pairs
from m3el_fast.scoring.entities import Gathered

_CHUNK = 8192  # pairs gathered at a time: two vectors of 700 fp32 values each are 46 MB

Gather = Callable[[Tensor], Gathered]
Score = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]


class Stored(Protocol):
    """Where the features of n entities are, with the image [n] int64 of each
    (:class:`~m3el_fast.scoring.entities.Entities`).
    """

    @property
    def image_index(self) -> Tensor: ...
    def items(self, rows: Tensor) -> Gathered: ...
    def visual(self, rows: Tensor) -> Gathered: ...


class Leaders(Protocol):
    """The leader [n] int64 of each entity by text alone and by text and image
    (:class:`~m3el_fast.scoring.identity.Identity`).
    """

    @property
    def text(self) -> Tensor: ...
    @property
    def both(self) -> Tensor: ...


class PairScorer:
    """Component scores of pairs of mentions and entities, on the entities' device.

    Each distinct pair of a mention and an entity's leader (:class:`Leaders`) is scored once, so that identical
    entities have bitwise identical scores.

    Args:
        precision: of G2L's products.
    """

    def __init__(self, matcher: Matcher, entities: Stored, identity: Leaders, precision: Precision) -> None:
        self.matcher, self.entities, self.identity, self.precision = matcher, entities, identity, precision

    def scores(self, mentions: Side, mention: Tensor, row: Tensor, component: str = "union") -> Vectors:
        """Scores [P] by name of the pairs (mention[i], row[i]), [P] int64 rows of ``mentions`` and of the index.

        Args:
            component: what is needed: ``text``, ``image``, ``cross`` (with ``t2v`` and ``v2t``), or ``union`` for all.
        """
        parts: Vectors = {}
        if component in ("text", "union") and self.matcher.text is not None:
            parts["text"] = self._text(mentions, mention, row)
        if component in ("image", "union") and self.matcher.image is not None:
            parts["image"] = self.image(mentions, mention, self.entities.image_index[row])
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

        return self._distinct(mentions.image_index[mention], image, self.entities.visual, score)

    def _text(self, mentions: Side, mention: Tensor, row: Tensor) -> Tensor:
        assert self.matcher.text is not None
        matching, side = self.matcher.text, unit(mentions.item, "text")

        def score(item: Mapping[str, Tensor], own: Tensor, local: Tensor) -> Tensor:
            return matching.pairs(side, unit(item, "text"), own, local, self.precision)

        return self._distinct(mention, self.identity.text[row], self.entities.items, score)

    def _cross(self, mentions: Side, mention: Tensor, row: Tensor) -> Vectors:
        parts = {}
        for name, side in unit(mentions.item, "cross").items():

            def score(
                item: Mapping[str, Tensor], own: Tensor, local: Tensor, name: str = name, side: Tensor = side
            ) -> Tensor:
                return inner_pairs(side, item[f"cross.{name}"], own, local)

            parts[name] = self._distinct(mention, self.identity.both[row], self.entities.items, score)
        return parts

    def _distinct(self, mention: Tensor, row: Tensor, gather: Gather, score: Score) -> Tensor:
        """Scores [P] of pairs, each distinct one computed once, file by file in the order of their rows."""
        if not len(row):
            return torch.empty(0, device=row.device)
        width = int(mention.max()) + 1
        pairs, back = (row * width + mention).unique(return_inverse=True)  # sorted by row
        values = torch.empty(len(pairs), device=row.device)
        for start in range(0, len(pairs), _CHUNK):
            own, rows = pairs[start : start + _CHUNK] % width, pairs[start : start + _CHUNK] // width
            for piece, tensors, local in gather(rows):
                order = own[piece].argsort(stable=True)  # kernels are fastest with equal mentions together
                values[start + piece.start + order] = score(tensors, own[piece][order], local[order])
        return values[back]
