"""A KB larger than a data set's: opening it, one mention's best ten, and throughput."""

from __future__ import annotations

import time

import torch

from bench import oracle
from bench.features import SyntheticMentions, synthetic_model
from bench.memory import peak_memory
from m3el_fast.index import EntityIndex
from m3el_fast.scorer import Scorer

_K = 10


class Large:
    """``mentions`` mentions against the M3EL index in the folder ``index``."""

    def __init__(self, index: str, mentions: int) -> None:
        torch.set_grad_enabled(False)
        model = synthetic_model("m3el")
        start = time.perf_counter()
        self.index = EntityIndex.open(index, model)
        self.opened = time.perf_counter() - start
        self.model, self.scorer = model, Scorer(model, self.index)
        self.mentions = model.mention_side(SyntheticMentions(len(self.index)).inputs(torch.arange(mentions)))
        self.one = self.mentions.take(slice(0, 1))

    def open_seconds(self) -> float:
        """Seconds that opening took in this fresh process."""
        return self.opened

    def verify(self) -> None:
        scores = oracle.all_scores(self.model.matcher, self.one, self.index)
        oracle.check_topk(self.scorer.topk(self.one, _K).rows, scores)

    def one_mention(self) -> None:
        self.scorer.topk(self.one, _K)

    def run(self) -> None:
        self.scorer.topk(self.mentions, _K)

    def peak(self) -> int:
        return peak_memory(self.run)
