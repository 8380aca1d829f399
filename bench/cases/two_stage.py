"""The best ten of all entities, by the exhaustive scan and in two stages, and what the two stages miss."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import oracle
from bench.features import CHECKED, SyntheticMentions, synthetic_model
from bench.memory import peak_memory
from m3el_fast.index import EntityIndex
from m3el_fast.scorer import Scorer

CANDIDATES = (10, 30, 100, 300, 1000)

_K = 10


class TwoStage:
    """``mentions`` mentions against the M3EL index in the folder ``index``; ``expected``: file of the reference's
    scores [CHECKED, E]."""

    def __init__(self, index: str, mentions: int, expected: str) -> None:
        torch.set_grad_enabled(False)
        self.model = synthetic_model("m3el")
        self.index = EntityIndex.open(index, self.model)
        self.scorer = Scorer(self.model, self.index)
        self.mentions = self.model.mention_side(SyntheticMentions(len(self.index)).inputs(torch.arange(mentions)))
        self.expected = torch.load(expected)
        self.found: dict[int | None, Tensor] = {}

    def verify(self) -> None:
        """The exhaustive scan and, with all entities as candidates, both stages find the best by the reference."""
        few = self.mentions.take(slice(0, CHECKED))
        for candidates in (None, len(self.index)):
            oracle.check_topk(self.scorer.topk(few, _K, candidates).rows, self.expected)

    def run(self, candidates: int | None) -> None:
        self.found[candidates] = self.scorer.topk(self.mentions, _K, candidates).rows

    def peak(self, candidates: int | None) -> int:
        return peak_memory(lambda: self.run(candidates))

    def images_per_entity(self) -> float:
        return self.index.visual_rows / self.index.rows

    def recall(self, candidates: int | None) -> list[float]:
        """Of the exact best one and the exact best ten, among what the last run with ``candidates`` found."""
        if None not in self.found:
            self.run(None)
        return [recall(self.found[candidates], self.found[None], k) for k in (1, _K)]


def recall(found: Tensor, exact: Tensor, k: int) -> float:
    """The share of the k best rows ``exact`` [M, >= k] that are in ``found`` [M, n]."""
    return float((exact[:, :k, None] == found[:, None]).any(dim=2).float().mean())
