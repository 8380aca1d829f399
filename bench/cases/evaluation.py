"""Evaluation end to end: encoding a KB and the mentions of a split, and ranking every gold against the whole KB."""

from __future__ import annotations

import time

import torch

from bench import oracle
from bench.cases import sample
from bench.machine import median_seconds
from bench.memory import peak_memory
from m3el_fast.evaluate import evaluate, rank_split
from m3el_fast.index import EntityIndex
from m3el_fast.scorer import Scorer

_CHECKED = 8  # mentions whose ranks are compared with the reference's


class Evaluation:
    """The test split of the sample set in the folder ``data`` with a fresh model, as ``m3el evaluate`` does it once
    data and pictures are read."""

    def __init__(self, data: str) -> None:
        torch.set_grad_enabled(False)
        _, model, self.data = sample.load(data)
        self.model, self.split = model.eval(), self.data.splits["test"]

    def size(self) -> list[int]:
        """Mentions and entities."""
        return [len(self.split.gold), len(self.data.entities)]

    def verify(self) -> None:
        index, few = EntityIndex.build(self.model, self.data.entities, progress=False), torch.arange(_CHECKED)
        ranks = rank_split(Scorer(self.model, index), self.split, few, progress=False)["union"]
        mentions = self.model.mention_side(self.split.source.inputs(few))
        oracle.check_ranks(ranks, self.split.gold[few], oracle.all_scores(self.model.matcher, mentions, index))

    def run(self) -> list[float]:
        """Seconds of building the index and of encoding and ranking the mentions."""
        start = time.perf_counter()
        index = EntityIndex.build(self.model, self.data.entities, progress=False)
        built = time.perf_counter()
        evaluate(Scorer(self.model, index), self.split, progress=False)
        return [built - start, time.perf_counter() - built]

    def mention_seconds(self) -> float:
        """Median seconds of encoding all mentions alone."""
        batches = torch.arange(len(self.split.gold)).split(256)  # the Scorer's, on a CPU

        def encode() -> None:
            for rows in batches:
                self.model.mention_side(self.split.source.inputs(rows))

        return median_seconds(encode, 3)

    def peak(self) -> int:
        return peak_memory(self.run)
