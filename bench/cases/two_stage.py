"""The best ten of all entities, by the exhaustive scan and in two stages, and what the two stages miss."""

from __future__ import annotations

import torch
from torch import Tensor

from bench import oracle
from bench.features import SyntheticMentions, synthetic_model
from bench.memory import peak_memory
from m3el_fast.index import EntityIndex
from m3el_fast.scorer import Scorer

CANDIDATES = (10, 30, 100, 300, 1000)

_K = 10
_CHECKED = 2  # mentions whose best ten are compared with the reference's


class TwoStage:
    """``mentions`` mentions against the M3EL index in the folder ``index``."""

    def __init__(self, index: str, mentions: int) -> None:
        torch.set_grad_enabled(False)
        self.model = synthetic_model("m3el")
        self.index = EntityIndex.open(index, self.model)
        self.scorer = Scorer(self.model, self.index)
        self.mentions = self.model.mention_side(SyntheticMentions(len(self.index)).inputs(torch.arange(mentions)))

    def verify(self) -> None:
        """The exhaustive scan and, with all entities as candidates, both stages find the best by the reference."""
        few = self.mentions.take(slice(0, _CHECKED))
        scores = oracle.all_scores(self.model.matcher, few, self.index)
        for candidates in (None, len(self.index)):
            oracle.check_topk(self.scorer.topk(few, _K, candidates).rows, scores)
        self.exact = self.scorer.topk(self.mentions, _K).rows

    def run(self, candidates: int | None) -> None:
        self.found = self.scorer.topk(self.mentions, _K, candidates).rows

    def peak(self, candidates: int | None) -> int:
        return peak_memory(lambda: self.run(candidates))

    def recall(self) -> list[float]:
        """Of the exact best one and the exact best ten, among what the last run found."""
        return [recall(self.found, self.exact, k) for k in (1, _K)]


def recall(found: Tensor, exact: Tensor, k: int) -> float:
    """The share of the k best rows ``exact`` [M, >= k] that are in ``found`` [M, n]."""
    return float((exact[:, :k, None] == found[:, None]).any(dim=2).float().mean())
