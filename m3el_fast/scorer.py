"""A block of mentions against every entity of an index, streamed: ranks of the golds, and the best k."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.features import Scores
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Side
from m3el_fast.models import MELModel

COMPONENTS = ("union", "text", "image", "cross")


@dataclass(frozen=True)
class TopK:
    """The best k entities of each mention.

    Attributes:
        rows: [M, k] int64 rows of the index, best first, ties to the lower row.
        scores: by component (``union``, ``text``, ``image``, ``t2v``, ``v2t`` where the model has it), [M, k].
    """

    rows: Tensor
    scores: dict[str, Tensor]


class Scorer:
    """Exact scores of mentions against all entities of an index, in blocks; no [M, E] matrix is ever held.

    Args:
        model: in evaluation mode; index: built with the same weights.
        block: entities scored at a time.
    """

    def __init__(self, model: MELModel, index: EntityIndex, block: int = 2048) -> None:
        self.model, self.index, self.block = model, index, block

    @torch.inference_mode()
    def ranks(self, mentions: Side, gold: Tensor) -> dict[str, Tensor]:
        """Rank of each mention's gold by component, [M] fp64: 1 + entities above it + half of those level with it
        (spec section 6).

        Args:
            mentions: the mention side of M mentions; gold: [M] int64 rows of the index.
        """
        own = self._gold_scores(mentions, gold)
        ranks = {name: torch.ones(len(gold), dtype=torch.float64) for name in own}
        for start, scores in self._blocks(mentions):
            columns = torch.arange(start, start + scores.union.shape[1])
            for name, gold_score in own.items():
                score = getattr(scores, name).cpu()
                key = self.index.keys[name]
                level = key[columns] == key[gold][:, None]  # the gold's equals, whatever rounding says
                above = (score > gold_score[:, None]) & ~level
                level = (level | (score == gold_score[:, None])) & (columns != gold[:, None])
                ranks[name] += above.sum(dim=1) + level.sum(dim=1) / 2
        return ranks

    @torch.inference_mode()
    def topk(self, mentions: Side, k: int) -> TopK:
        """The k best entities of each of M mentions, with component scores.

        Raises:
            ValueError: k is not in 1..E.
        """
        if not 1 <= k <= len(self.index):
            raise ValueError(f"k: expected 1 to {len(self.index)} (the number of entities), got {k}")
        best: dict[str, Tensor] = {}
        for start, scores in self._blocks(mentions):
            new = {name: value.cpu() for name, value in vars(scores).items() if value is not None}
            new["row"] = torch.arange(start, start + scores.union.shape[1]).expand_as(new["union"])
            if best:
                new = {name: torch.cat([best[name], value], dim=1) for name, value in new.items()}
            order = ops.topk(new["union"], min(k, new["union"].shape[1]))[1]
            best = {name: value.gather(1, order) for name, value in new.items()}
        return TopK(best.pop("row"), best)

    def _blocks(self, mentions: Side) -> Iterator[tuple[int, Scores]]:
        for start in range(0, len(self.index), self.block):
            rows = slice(start, start + self.block)
            yield start, self.model.matcher.score(mentions, self._entities(rows))

    def _gold_scores(self, mentions: Side, gold: Tensor) -> dict[str, Tensor]:
        """Each mention's score with its own gold, by component, [M]: diagonals of small square blocks."""
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(gold), 16):
            rows = torch.arange(start, min(start + 16, len(gold)))
            scores = self.model.matcher.score(mentions.take(rows), self._entities(gold[rows]))
            found = {name: getattr(scores, name) for name in COMPONENTS}
            parts.append({name: score.diagonal().cpu() for name, score in found.items() if score is not None})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _entities(self, rows: Tensor | slice) -> Side:
        side = self.index.side.take(rows)
        device = self.model.device
        index = None if side.image_index is None else side.image_index.to(device)
        return Side(
            {name: tensor.to(device) for name, tensor in side.item.items()},
            {name: tensor.to(device) for name, tensor in side.visual.items()},
            index,
        )
