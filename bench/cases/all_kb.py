"""All-KB exact ranking through the Scorer, and eager PyTorch on a slice of the same KB."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import oracle
from bench.features import CHECKED, SyntheticKB, SyntheticMentions, synthetic_model
from bench.machine import level_in_force, median_seconds
from bench.memory import peak_memory
from bench.peers import one_image_each, released_ranks
from m3el_fast.features import Features
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Side
from m3el_fast.metrics import Metrics
from m3el_fast.scorer import Scorer
from m3el_fast.scoring.memory import sizes_on


class AllKB:
    """Ranks of ``mentions`` golds against every entity of the index in the folder ``index``; ``expected``: file of the
    reference's scores [CHECKED, E]."""

    def __init__(self, kind: str, index: str, mentions: int, expected: str) -> None:
        torch.set_grad_enabled(False)
        self.model = synthetic_model(kind)
        self.index = EntityIndex.open(index, self.model)
        self.scorer = Scorer(self.model, self.index)
        source, rows = SyntheticMentions(len(self.index)), torch.arange(mentions)
        self.gold = source.gold(rows)
        self.mentions = self.model.mention_side(source.inputs(rows))
        self.block = sizes_on(self.gold.device).mentions_of(mentions)
        self.expected, self.peaks = torch.load(expected), [0]

    def verify(self, level: str) -> None:
        """Compare ranks with those of the reference on the stored features; the instruction set with ``level``.

        A whole block of mentions is ranked: after it every shape of a run has run, and the index is in memory.
        """
        assert level_in_force() == level
        gold = self.gold[: self.block]
        ranks = self.scorer.ranks(self.mentions.take(slice(0, self.block)), gold)["union"]
        few = min(CHECKED, self.block)
        oracle.check_ranks(ranks[:few], gold[:few], self.expected[:few])

    def run(self) -> None:
        """Ranks all mentions and notes the peak of memory, which takes milliseconds of a run that takes seconds."""
        self.peaks.append(peak_memory(self._rank))

    def peak(self) -> int:
        """Bytes: the largest of all runs."""
        return max(self.peaks)

    def _rank(self) -> None:
        self.ranks = self.scorer.ranks(self.mentions, self.gold)["union"]

    def report(self) -> dict[str, Any]:
        metrics, stats = Metrics.of(self.ranks), self.scorer.stats
        return {
            "hits@1": metrics.hits[1],
            "mrr": metrics.mrr,
            "settled_share": stats.settled / stats.scanned,
            "largest_error": stats.error["union"],
            "margin": stats.margin["union"],
            "repeats": stats.repeats,
            "images_per_entity": self.index.visual_rows / len(self.index),
            "block": self.block,
        }


class Slice:
    """``mentions`` mentions and the first ``entities`` entities, in memory in fp32."""

    def __init__(self, kind: str, mentions: int, entities: int) -> None:
        torch.set_grad_enabled(False)
        self.model = synthetic_model(kind)
        rows = torch.arange(mentions)
        self.pairs = mentions * entities
        self.left = self.model.features(SyntheticMentions(entities).inputs(rows))
        self.gold = SyntheticMentions(entities).gold(rows)
        self.right = self.model.features(SyntheticKB(entities).inputs(torch.arange(entities)))
        self.images_per_entity = len(self.right.image_global) / entities

    def report(self) -> dict[str, Any]:
        return {"images_per_entity": self.images_per_entity}

    def reference(self, mentions: int, entities: int) -> Tensor:
        """Union scores in fp64 of the first few."""
        matcher = self.model.matcher
        left, right = matcher.mention_side(self.left), matcher.entity_side(self.right)
        left, right = left.take(slice(0, mentions)), right.take(slice(0, entities))
        matcher.double()
        scores = oracle.union_scores(matcher, *(oracle.widened(side, torch.float64) for side in (left, right)))
        matcher.float()
        return scores.float()


class ReleasedEager(Slice):
    """The released code's evaluation: all of the matcher for every chunk of entities, ranks by a double argsort."""

    CHUNKS = (25, 50, 100, 200)

    def verify(self) -> None:
        expected = self.reference(4, 30)
        few, entities = _first(self.left, 4), _first(one_image_each(self.right), 30)
        ranks, scores = released_ranks(self.model.matcher, few, entities, self.gold[:4] % 30, chunk=11)
        torch.testing.assert_close(scores, expected, rtol=0, atol=2e-4)
        oracle.check_ranks(ranks, self.gold[:4] % 30, expected)
        self.right = one_image_each(self.right)

    def sweep(self) -> int:
        """The best chunk size, on a fifth of the entities."""
        part = _first(self.right, max(1, len(self.right) // 5))
        seconds = {chunk: median_seconds(partial(self._ranks, part, chunk), 1) for chunk in self.CHUNKS}
        self.chunk = min(seconds, key=lambda chunk: seconds[chunk])
        return self.chunk

    def run(self) -> None:
        self._ranks(self.right, self.chunk)

    def peak(self) -> int:
        return peak_memory(self.run)

    def _ranks(self, entities: Features, chunk: int) -> None:
        released_ranks(self.model.matcher, self.left, entities, self.gold % len(entities), chunk)


class ReformulatedEager(Slice):
    """Section 5 in eager PyTorch: sides computed before, images shared, no A V; blocks of the best size."""

    BLOCKS = ((16, 20), (16, 80), (64, 10), (64, 20), (64, 40), (64, 80))

    def verify(self) -> None:
        expected = self.reference(4, 30)
        matcher = self.model.matcher
        self.mention_side, self.entity_side = matcher.mention_side(self.left), matcher.entity_side(self.right)
        few = self.mention_side.take(slice(0, 4)), self.entity_side.take(slice(0, 30))
        torch.testing.assert_close(self._scores(*few, (2, 7)), expected, rtol=0, atol=2e-4)

    def sweep(self) -> list[int]:
        """The best block, mentions x entities, on a tenth of the entities."""
        part = self.entity_side.take(slice(0, max(1, self.pairs // len(self.gold) // 10)))
        seconds = {b: median_seconds(partial(self._scores, self.mention_side, part, b), 3) for b in self.BLOCKS}
        self.block = min(seconds, key=lambda block: seconds[block])
        return list(self.block)

    def run(self) -> None:
        self._scores(self.mention_side, self.entity_side, self.block)

    def peak(self) -> int:
        return peak_memory(self.run)

    def _scores(self, mentions: Side, entities: Side, block: tuple[int, int]) -> Tensor:
        rows, columns = len(mentions.item["text.global"]), len(entities.item["text.global"])
        lefts = [mentions.take(slice(i, i + block[0])) for i in range(0, rows, block[0])]
        strips = []
        for j in range(0, columns, block[1]):
            right = entities.take(slice(j, j + block[1]))
            strips.append(torch.cat([oracle.union_scores(self.model.matcher, left, right) for left in lefts]))
        return torch.cat(strips, dim=1)


def _first(f: Features, count: int) -> Features:
    assert f.image_index is None or bool((f.image_index[:count] == torch.arange(count)).all())
    return Features(f.text_global[:count], f.text_local[:count], f.image_global[:count], f.image_local[:count])
