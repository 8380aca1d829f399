"""What is decided of one block of mentions: the best entities, ranks of golds, scores; margins widened where needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from m3el_fast.errors import InputError
from m3el_fast.features import Vectors
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Matcher, Side
from m3el_fast.ops import Precision
from m3el_fast.scoring.candidates import Reranker, coarse_topk
from m3el_fast.scoring.entities import Entities
from m3el_fast.scoring.identity import Identity
from m3el_fast.scoring.margins import Margins
from m3el_fast.scoring.pairs import PairScorer
from m3el_fast.scoring.partition import Partition, log_partition
from m3el_fast.scoring.ranks import MarginTooSmall, RankCounter
from m3el_fast.scoring.scan import ScannedBlock, Scanner
from m3el_fast.scoring.selection import Selection, TopK, best, threshold

COMPONENTS = ("union", "text", "image", "cross")
"""Scores that golds are ranked by; a model's form may lack the last three."""

Temperatures = tuple[float, ...]
Take = Callable[[ScannedBlock], None]

_SAMPLE, _SAMPLED = 256, 2048  # pairs, at least, that the first margins come from, and entities, at most

_Result = TypeVar("_Result")


class BlockScorer:
    """Scores blocks of mentions against the entities of an index, as :class:`~m3el_fast.scorer.Scorer` promises.

    ``mentions`` are M mentions on the device of the entities, their features in fp32; ``size`` is how many entities to
    scan at a time. Results that a margin decided are found again with a wider one where it was too narrow.

    Args:
        scanner: with the precision that scans; settling: the precision that settles.
    """

    def __init__(
        self,
        matcher: Matcher,
        index: EntityIndex,
        entities: Entities,
        scanner: Scanner,
        settling: Precision,
        margins: Margins,
        device: torch.device,
    ) -> None:
        self._matcher, self._index, self._entities, self._scanner = matcher, index, entities, scanner
        self._margins, self._device = margins, device
        self._identity = Identity(matcher, index, device)
        self._whole = Scanner(matcher, entities, settling)
        self._pairs = PairScorer(matcher, entities, self._identity, settling)
        self._reranker = Reranker(matcher, entities, self._identity, scanner.precision)

    def select(self, mentions: Side, size: int, k: int, temperatures: Temperatures) -> TopK:
        """The k best of all entities."""

        def attempt() -> TopK:
            take, result = self._selecting(mentions, k, temperatures)
            self._scan(mentions, size, ("union",), take)
            return result()

        return self._until_margin_holds(attempt)

    def rank(self, mentions: Side, size: int, gold: Tensor) -> Vectors:
        """Ranks [M] fp64 of the golds [M] by component."""

        def attempt() -> Vectors:
            take, result = self._ranking(mentions, gold)
            self._scan(mentions, size, COMPONENTS, take)
            return result()

        return self._until_margin_holds(attempt)

    def rank_and_select(
        self, mentions: Side, size: int, gold: Tensor, k: int, temperatures: Temperatures
    ) -> tuple[Vectors, TopK]:
        """Both in one scan."""

        def attempt() -> tuple[Vectors, TopK]:
            rank, ranks = self._ranking(mentions, gold)
            select, top = self._selecting(mentions, k, temperatures)
            self._scan(mentions, size, COMPONENTS, rank, select)
            return ranks(), top()

        return self._until_margin_holds(attempt)

    def _scan(self, mentions: Side, size: int, names: tuple[str, ...], *takers: Take) -> None:
        for block in self._scanner.scan(mentions, size, names):
            for take in takers:
                take(block)
            self._margins.count(scanned=block.scores["union"].numel())

    def _selecting(self, mentions: Side, k: int, temperatures: Temperatures) -> tuple[Take, Callable[[], TopK]]:
        """What takes in a scan's blocks, and what then gives the k best entities."""
        margin = self._margins.of("union")
        selection = Selection(mention_count(mentions), k, margin, self._device)
        partition = Partition(mention_count(mentions), temperatures, self._device)
        eligible, live = self._eligible(k), self._entities.live

        def take(block: ScannedBlock) -> None:
            rows = slice(block.start, block.stop)
            selection.offer(block.scores["union"], block.start, eligible[rows])
            partition.add(block.scores["union"], live[rows])

        def result() -> TopK:
            mention, row, scanned = selection.entries()
            scores = self._within(margin, mentions, mention, row, scanned)
            partition.replace(mention, scanned, scores["union"])
            return best(mention, row, scores, partition.value(), k)

        return take, result

    def two_stages(self, mentions: Side, size: int, k: int, candidates: int, temperatures: Temperatures) -> TopK:
        """The k best of so many entities that have the best coarse scores."""
        coarse = self._matcher.coarse(mentions)
        if not coarse.item and not coarse.visual:
            expected = "ids or nothing: no term of this model's union score is an inner product, to choose by"
            raise InputError("candidates", expected, candidates)
        # of identical entities the first stands for all: rounding may give their coarse scores different last bits
        eligible = self._eligible(1)
        values, rows = coarse_topk(coarse, self._entities, size, eligible, candidates)
        scanned = self._reranker.scores(mentions, values, rows)
        there = rows >= 0
        self._margins.count(scanned=mention_count(mentions) * len(eligible), reranked=int(there.sum()))
        last = scanned.topk(k, dim=1).values[:, -1]

        def attempt() -> TopK:
            margin = self._margins.of("union")
            near = there & (scanned >= threshold(last, margin)[:, None])
            mention, column = near.nonzero(as_tuple=True)
            place, row = self._identity.copies(rows[mention, column], k)
            mention, column = mention[place], column[place]
            scores = self._within(margin, mentions, mention, row, scanned[mention, column])
            exact = scanned.index_put((mention, column), scores["union"])  # copies put the same
            number = self._identity.number(rows.clamp_min(0))
            return best(mention, row, scores, log_partition(exact, number, temperatures), k)

        return self._until_margin_holds(attempt)

    def _within(self, margin: float, mentions: Side, mention: Tensor, row: Tensor, scanned: Tensor) -> Vectors:
        """Settled scores of pairs [P]; ``scanned`` scores of theirs must be no further off than the margin allows."""
        scores = self.settled(mentions, mention, row)
        if not self._margins.holds("union", margin, scanned, scores["union"].nan_to_num(nan=-torch.inf)):
            raise MarginTooSmall
        return scores

    def _eligible(self, k: int) -> Tensor:
        """[rows] bool: with k identical ones ahead of it, which win ties, an entity is not among the k best."""
        return self._entities.live & (self._identity.occurrence < k)

    def choose(self, mentions: Side, k: int, rows: list[Tensor], temperatures: Temperatures) -> TopK:
        """The k best of the rows given for each mention, which may repeat."""
        distinct = [one.unique() for one in rows]
        mention, row = (column.to(self._device) for column in listed(distinct))
        scores = self.settled(mentions, mention, row)
        place = torch.cat([torch.empty(0, dtype=torch.int64), *(torch.arange(len(one)) for one in distinct)])
        blank = torch.full((len(rows), max([1, *map(len, distinct)])), -torch.inf, device=self._device)
        logs = log_partition(blank.index_put((mention, place.to(self._device)), scores["union"]), None, temperatures)
        return best(mention, row, scores, logs, k)

    def _ranking(self, mentions: Side, gold: Tensor) -> tuple[Take, Callable[[], Vectors]]:
        """What takes in a scan's blocks, and what then gives the ranks of the golds."""
        own = self.settled(mentions, torch.arange(len(gold), device=self._device), gold)
        counters = {name: self._counter(name, mentions, gold, own[name]) for name in COMPONENTS if name in own}

        def take(block: ScannedBlock) -> None:
            rows = slice(block.start, block.stop)
            live = self._entities.live[rows].long()
            for name, counter in counters.items():
                if name == "image":
                    assert block.distinct is not None
                    weights = torch.zeros_like(block.images).index_add(0, block.place, live)
                    counter.add(block.distinct, block.images, block.images, weights)
                else:
                    leader = self._identity.of(name)[rows]
                    counter.add(block.scores[name], leader, leader, live)

        return take, lambda: {name: counter.ranks() for name, counter in counters.items()}

    def _counter(self, name: str, mentions: Side, gold: Tensor, own: Tensor) -> RankCounter:
        margin = self._margins.of(name)
        keys = self._entities.image_index if name == "image" else self._identity.of(name)
        identical = keys[self._entities.live].bincount()[keys[gold]]

        def settle(mention: Tensor, unit: Tensor) -> Tensor:
            self._margins.count(settled=len(unit))
            if name == "image":
                found = self._pairs.image(mentions, mention, unit)
            else:
                found = self._pairs.scores(mentions, mention, unit, name)[name]
            return found.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

        def holds(scanned: Tensor, settled: Tensor) -> bool:
            return self._margins.holds(name, margin, scanned, settled)

        own = own.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        return RankCounter(own, keys[gold], identical, margin, settle, holds)

    def matrix(self, mentions: Side, size: int, names: tuple[str, ...]) -> Vectors:
        """Scores [M, E] of all live entities on the CPU, those of identical ones copied from their leader."""
        blocks: list[Vectors] = []
        for block in self._whole.scan(mentions, size, names):
            blocks.append({name: score.cpu() for name, score in block.scores.items()})
        self._margins.count(scanned=mention_count(mentions) * self._index.rows)
        whole = {name: torch.cat([block[name] for block in blocks], dim=1) for name in blocks[0]}
        return {name: score[:, self._identity.of(name)[self._entities.live].cpu()] for name, score in whole.items()}

    def _until_margin_holds(self, attempt: Callable[[], _Result]) -> _Result:
        while True:
            try:
                return attempt()
            except MarginTooSmall:
                self._margins.count(repeats=1)

    def calibrate(self, mentions: Side, size: int) -> None:
        """The first margins, from pairs spread over the first entities."""
        block = next(self._scanner.scan(mentions, min(_SAMPLED, size), COMPONENTS))
        count, width = block.scores["union"].shape
        step = (width * count // max(_SAMPLE, 8 * count)) | 1  # odd, so that mentions meet different entities
        pairs = torch.arange(0, count * width, step, device=self._device)
        mention, column = pairs // width, pairs % width
        settled = self.settled(mentions, mention, column + block.start)
        settled = {name: settled[name] for name in COMPONENTS if name in settled}
        self._margins.calibrate({name: block.scores[name][mention, column] for name in settled}, settled)

    def settled(self, mentions: Side, mention: Tensor, row: Tensor) -> Vectors:
        """Scores [P] of pairs by component."""
        self._margins.count(settled=len(row))
        return self._pairs.scores(mentions, mention, row)


def mention_count(side: Side) -> int:
    """How many mentions they are."""
    if side.image_index is not None:
        return len(side.image_index)
    return len(next(iter((side.item or side.visual).values())))


def listed(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mention and row [P] of lists of rows, one a mention."""
    counts = torch.tensor([len(one) for one in rows], dtype=torch.int64)
    return torch.arange(len(rows)).repeat_interleave(counts), torch.cat([torch.empty(0, dtype=torch.int64), *rows])
