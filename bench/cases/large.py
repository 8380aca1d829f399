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
    """``mentions`` mentions against the M3EL index in the folder ``index``; ``expected``: file of the reference's
    scores [CHECKED, E]."""

    def __init__(self, index: str, mentions: int, expected: str) -> None:
        torch.set_grad_enabled(False)
        model = synthetic_model("m3el")
        start = time.perf_counter()
        self.index = EntityIndex.open(index, model)
        self.opened = time.perf_counter() - start
        self.scorer = Scorer(model, self.index)
        self.mentions = model.mention_side(SyntheticMentions(len(self.index)).inputs(torch.arange(mentions)))
        self.expected = torch.load(expected)
        self.one = self.mentions.take(slice(0, 1))

    def open_seconds(self) -> float:
        """Seconds that opening took in this fresh process."""
        return self.opened

    def verify(self) -> None:
        oracle.check_topk(self.scorer.topk(self.one, _K).rows, self.expected[:1])

    def one_mention(self) -> None:
        self.scorer.topk(self.one, _K)

    def run(self) -> None:
        self.scorer.topk(self.mentions, _K)

    def images_per_entity(self) -> float:
        return self.index.visual_rows / self.index.rows

    def peak(self) -> int:
        return peak_memory(self.run)
