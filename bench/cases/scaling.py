"""Work whose size is chosen by the call: the best ten of M mentions among the first E entities, a training step's
global-to-local scores at batch B, each with any number of threads."""

from __future__ import annotations

import copy
import time

import torch

from bench import oracle
from bench.cases.training import Training
from bench.features import CHECKED, SyntheticMentions, synthetic_model
from bench.memory import peak_memory
from m3el_fast.index import EntityIndex
from m3el_fast.scorer import Scorer

_K = 10


class Scan:
    """Up to ``mentions`` mentions against prefixes of the M3EL index in the folder ``index``; ``expected``: file of the
    reference's scores [CHECKED, E]."""

    def __init__(self, index: str, mentions: int, expected: str) -> None:
        torch.set_grad_enabled(False)
        self.model = synthetic_model("m3el")
        self.index = EntityIndex.open(index, self.model)
        self.mentions = self.model.mention_side(SyntheticMentions(len(self.index)).inputs(torch.arange(mentions)))
        self.expected = torch.load(expected)
        self._scorers: dict[int, Scorer] = {}

    def verify(self, entities: int) -> None:
        """The best by the reference among the first ``entities``, whose pages are in memory from here on."""
        few = self.mentions.take(slice(0, CHECKED))
        oracle.check_topk(self._scorer(entities).topk(few, _K).rows, self.expected[:, :entities])

    def run(self, mentions: int, entities: int, threads: int) -> float:
        """Seconds of one call."""
        torch.set_num_threads(threads)
        scorer, side = self._scorer(entities), self.mentions.take(slice(0, mentions))
        start = time.perf_counter()
        scorer.topk(side, _K)
        return time.perf_counter() - start

    def peak(self, mentions: int, entities: int, threads: int) -> int:
        return peak_memory(lambda: self.run(mentions, entities, threads))

    def _scorer(self, entities: int) -> Scorer:
        if entities not in self._scorers:
            self._scorers[entities] = Scorer(self.model, prefix(self.index, entities))
        return self._scorers[entities]


class Steps:
    """Forward and backward of in-batch ``g2l_scores`` in fp32, as :class:`Training`."""

    def __init__(self, batches: list[int]) -> None:
        self._cases = {batch: Training(batch, "fp32") for batch in batches}

    def verify(self) -> None:
        for case in self._cases.values():
            case.verify()

    def run(self, batch: int) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self._cases[batch].run()
        return time.perf_counter() - start

    def peak(self, batch: int) -> int:
        return self._cases[batch].peak()


def prefix(index: EntityIndex, entities: int) -> EntityIndex:
    """The first ``entities`` of an index of one segment without removals, on the same mapped files."""
    [segment] = index.segments
    segment, part, own = copy.copy(segment), copy.copy(index), slice(0, entities)
    segment.stored = {name: tensor[own] for name, tensor in segment.stored.items()}
    segment.item = {name: tensor[own] for name, tensor in segment.item.items()}
    segment.image_index, segment.text_key = segment.image_index[own], segment.text_key[own]
    part.rows, part.live, part.segments = entities, index.live[own], [segment]
    for name in ("image_index", "text_key", "union_key"):  # computed from the segments when asked for
        vars(part).pop(name, None)
    return part
