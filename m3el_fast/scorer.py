"""Mentions against every entity of an index, streamed and exact: ranks of golds, the best k, scores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.devices import named_device
from m3el_fast.errors import InputError
from m3el_fast.features import Scores, Vectors
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Side
from m3el_fast.models import MELModel
from m3el_fast.scoring.candidates import Reranker, candidate_number, coarse_topk
from m3el_fast.scoring.entities import entities_on
from m3el_fast.scoring.identity import Identity
from m3el_fast.scoring.margins import Margins, Stats
from m3el_fast.scoring.memory import sizes_on
from m3el_fast.scoring.pairs import PairScorer
from m3el_fast.scoring.ranks import MarginTooSmall, RankCounter
from m3el_fast.scoring.scan import Scanner
from m3el_fast.scoring.selection import Selection, TopK, best, threshold

__all__ = ["COMPONENTS", "Scorer", "Stats", "TopK"]

COMPONENTS = ("union", "text", "image", "cross")
"""Scores that golds are ranked by; a model's form may lack the last three."""

Candidates = Sequence[Sequence[str] | Tensor]

_SAMPLE, _SAMPLED = 256, 2048  # pairs, at least, that the first margins come from, and entities, at most
_BATCH = 256  # mentions that are encoded at a time, on a CPU

_Result = TypeVar("_Result")


class Scorer:
    """Scores of mentions against the entities of an index, in blocks: neither all pairs' scores nor pair tensors are
    ever held, but where they are the result (:meth:`scores`, :meth:`components`).

    With ``precision="exact"`` the KB is scanned with bf16 products where the machine is fastest with them, and whatever
    lies within a margin of the score that decides (the k-th best, or the gold's) is settled: scored again in fp32 on
    the stored features. The margin is 4 x the largest error of a sample; every settled pair is checked, and an error
    beyond half the margin widens it and repeats the block of mentions. Results are those of fp32 arithmetic throughout
    (by Triton's kernels within about 2^-21 of each product), and identical entities have bitwise identical scores.

    May be called from several threads. ``mentions`` is always what ``model.mention_side`` gives for M mentions.

    Args:
        model: in evaluation mode; index: built with the same weights.
        precision: ``exact``; ``fp32`` scans with fp32 products too; ``bf16`` settles in bf16 what a rounding of fp32
            could change, so that its errors, about 2^-9 of the attention's logits, stay in the results.
        device: where blocks are scored, ``cpu``, ``cuda`` or ``cuda:N``; None = the model's. The index is copied to a
            GPU once where it fits into 60% of the free memory, else a block at a time for every scan, the next one
            while one is scored.
        block: entities scanned at a time; None = by the number of mentions and, on a GPU, by the memory.

    Raises:
        InputError: the index is of another model, an option is unknown, or this machine has no such device.
    """

    def __init__(
        self,
        model: MELModel,
        index: EntityIndex,
        precision: Literal["exact", "bf16", "fp32"] = "exact",
        device: torch.device | str | None = None,
        block: int | None = None,
    ) -> None:
        if precision not in ("exact", "bf16", "fp32"):
            raise InputError("precision", "exact, bf16 or fp32", precision)
        if block is not None and block < 1:
            raise InputError("block", "at least 1", block)
        index.check(model)
        self.model, self.index, self.precision, self._block = model, index, precision, block
        self.device = model.device if device is None else named_device(str(device))
        scanning = ops.scan_precision(self.device) if precision == "exact" else precision
        settling: ops.Precision = "bf16" if precision == "bf16" else "fp32"
        matcher = model.matcher
        if self.device != model.device:
            matcher = copy.deepcopy(matcher).to(self.device)
        self._matcher, self._entities = matcher, entities_on(self.device, index)
        self._sizes = sizes_on(self.device)
        self._identity = Identity(matcher, index, self.device)
        self._scanner = Scanner(matcher, self._entities, scanning)
        self._whole = Scanner(matcher, self._entities, settling)
        self._pairs = PairScorer(matcher, self._entities, self._identity, settling)
        self._reranker = Reranker(matcher, self._entities, self._identity, scanning)
        self._margins = Margins(checked=precision != "bf16")

    @property
    def batch(self) -> int:
        """Mentions to give a call at least, where there are as many: a streamed index goes to the GPU once a block."""
        return max(_BATCH, self._sizes.mentions)

    @property
    def stats(self) -> Stats:
        """Pairs scanned and scored again so far, errors seen and margins in use."""
        return self._margins.stats()

    @torch.inference_mode()
    def topk(self, mentions: Side, k: int, candidates: Candidates | int | None = None) -> TopK:
        """The k best entities of each of M mentions, with component scores.

        Args:
            candidates: for each mention the ids, or int64 rows of the index, to choose from, all settled without a scan
                (they may repeat, and count once); or a number of at least k, in two stages: a coarse score, all terms
                of the union score that are inner products (spec section 5.1), chooses so many entities for each
                mention, identical ones counting as one, and the exact score the k best of these, which is fast, and
                misses what the coarse score ranks lower (``bench.recall`` measures how often); None = all entities.

        Raises:
            InputError: k is not in 1..E, a candidate is not in the index, there are fewer candidates than k or the
                model has no coarse score, or a feature is not finite.
        """
        if not 1 <= k <= len(self.index):
            raise InputError("k", f"1 to {len(self.index)} (the number of entities)", k)
        number = candidate_number(candidates, k)
        rows = None
        if candidates is not None and number is None:
            assert not isinstance(candidates, int)
            rows = self._candidate_rows(candidates, _count(mentions))
        parts: list[TopK] = []
        for start, block in self._blocks(mentions):
            if number is not None:
                parts.append(self._two_stages(block, k, min(number, len(self.index))))
            elif rows is None:
                parts.append(self._until_margin_holds(partial(self._select, block, k)))
            else:
                parts.append(self._choose(block, k, rows[start : start + _count(block)]))
        scores = {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores}
        return TopK(torch.cat([part.rows for part in parts]), scores)

    @torch.inference_mode()
    def ranks(self, mentions: Side, gold: Tensor) -> dict[str, Tensor]:
        """Rank of each mention's gold by component, [M] fp64: 1 + entities above it + half of those level with it
        (spec section 6).

        Args:
            gold: [M] int64 rows of the index.

        Raises:
            InputError: a gold is not a live row of the index, or a feature is not finite.
        """
        self._check_gold(gold.cpu(), _count(mentions))
        gold = gold.to(self.device)
        parts = [
            self._until_margin_holds(partial(self._rank, block, gold[start : start + _count(block)]))
            for start, block in self._blocks(mentions)
        ]
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    @torch.inference_mode()
    def scores(self, mentions: Side) -> Tensor:
        """Union scores [M, E] fp32 of all mentions and all E live entities, in the order of their rows.

        In fp32 on the stored features (bf16 products with ``precision="bf16"``). Raises InputError as :meth:`topk`.
        """
        return self._matrix(mentions, ("union",))["union"]

    @torch.inference_mode()
    def components(self, mentions: Side, candidates: Candidates | None = None) -> dict[str, Tensor]:
        """Scores fp32 by component: ``union``, ``text``, ``image``, ``cross``, ``t2v``, ``v2t`` where the model has it.

        Args:
            candidates: for each mention the ids, or int64 rows of the index, to score; None = all entities.

        Returns:
            [M, E] as :meth:`scores`, or [M, C] in the order of the candidates, -inf behind a mention's last one.

        Raises:
            InputError: as :meth:`topk`.
        """
        if candidates is None:
            return self._matrix(mentions, tuple(field.name for field in fields(Scores)))
        rows = self._candidate_rows(candidates, _count(mentions))
        width = max(map(len, rows), default=0)
        parts: list[Vectors] = []
        for start, block in self._blocks(mentions):
            own = rows[start : start + _count(block)]
            mention, row = _listed(own)
            place = torch.cat([torch.arange(len(one)) for one in own]) if own else mention
            blank = torch.full((len(own), width), -torch.inf)
            scores = self._settled(block, mention.to(self.device), row.to(self.device))
            parts.append({name: blank.index_put((mention, place), score.cpu()) for name, score in scores.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    # -- one block of mentions ----------------------------------------------------------------------------------------

    def _select(self, mentions: Side, k: int) -> TopK:
        margin = self._margins.of("union")
        selection = Selection(_count(mentions), k, margin, self.device)
        eligible = self._eligible(k)
        for block in self._scanner.scan(mentions, self._size(mentions), ("union",)):
            selection.offer(block.scores["union"], block.start, eligible[block.start : block.stop])
            self._margins.count(scanned=block.scores["union"].numel())
        mention, row, scanned = selection.entries()
        return self._best(mentions, k, margin, mention, row, scanned)

    def _two_stages(self, mentions: Side, k: int, candidates: int) -> TopK:
        coarse = self._matcher.coarse(mentions)
        if not coarse.item and not coarse.visual:
            expected = "ids or nothing: no term of this model's union score is an inner product, to choose by"
            raise InputError("candidates", expected, candidates)
        # of identical entities the first stands for all: rounding may give their coarse scores different last bits
        eligible, size = self._eligible(1), self._size(mentions)
        values, rows = coarse_topk(coarse, self._entities, size, eligible, candidates)
        scanned = self._reranker.scores(mentions, values, rows)
        there = rows >= 0
        self._margins.count(scanned=_count(mentions) * len(eligible), reranked=int(there.sum()))
        last = scanned.topk(k, dim=1).values[:, -1]

        def attempt() -> TopK:
            margin = self._margins.of("union")
            near = there & (scanned >= threshold(last, margin)[:, None])
            mention, column = near.nonzero(as_tuple=True)
            place, row = self._identity.copies(rows[mention, column], k)
            mention, column = mention[place], column[place]
            return self._best(mentions, k, margin, mention, row, scanned[mention, column])

        return self._until_margin_holds(attempt)

    def _best(self, mentions: Side, k: int, margin: float, mention: Tensor, row: Tensor, scanned: Tensor) -> TopK:
        """The k best of entries [P] that may be, by their scanned scores."""
        scores = self._settled(mentions, mention, row)
        if not self._margins.holds("union", margin, scanned, scores["union"].nan_to_num(nan=-torch.inf)):
            raise MarginTooSmall
        return best(mention, row, scores, _count(mentions), k)

    def _eligible(self, k: int) -> Tensor:
        """[rows] bool: with k identical ones ahead of it, which win ties, an entity is not among the k best."""
        return self._entities.live & (self._identity.occurrence < k)

    def _choose(self, mentions: Side, k: int, rows: list[Tensor]) -> TopK:
        mention, row = (column.to(self.device) for column in _listed([one.unique() for one in rows]))
        return best(mention, row, self._settled(mentions, mention, row), len(rows), k)

    def _rank(self, mentions: Side, gold: Tensor) -> dict[str, Tensor]:
        own = self._settled(mentions, torch.arange(len(gold), device=self.device), gold)
        counters = {name: self._counter(name, mentions, gold, own[name]) for name in COMPONENTS if name in own}
        for block in self._scanner.scan(mentions, self._size(mentions), counters):
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
            self._margins.count(scanned=block.scores["union"].numel())
        return {name: counter.ranks() for name, counter in counters.items()}

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

    def _matrix(self, mentions: Side, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Scores [M, E] of all live entities, those of identical ones copied from their leader."""
        parts: list[Vectors] = []
        for _, side in self._blocks(mentions):
            blocks: list[Vectors] = []
            for block in self._whole.scan(side, self._size(side), names):
                blocks.append({name: score.cpu() for name, score in block.scores.items()})
            whole = {name: torch.cat([b[name] for b in blocks], dim=1) for name in blocks[0]}
            live = self._entities.live
            parts.append({name: score[:, self._identity.of(name)[live].cpu()] for name, score in whole.items()})
            self._margins.count(scanned=_count(side) * self.index.rows)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    # -- margins ------------------------------------------------------------------------------------------------------

    def _until_margin_holds(self, attempt: Callable[[], _Result]) -> _Result:
        while True:
            try:
                return attempt()
            except MarginTooSmall:
                self._margins.count(repeats=1)

    def _calibrate(self, mentions: Side) -> None:
        """The first margins, from pairs spread over the first entities."""
        block = next(self._scanner.scan(mentions, min(_SAMPLED, self._size(mentions)), COMPONENTS))
        count, width = block.scores["union"].shape
        step = (width * count // max(_SAMPLE, 8 * count)) | 1  # odd, so that mentions meet different entities
        pairs = torch.arange(0, count * width, step, device=self.device)
        mention, column = pairs // width, pairs % width
        settled = self._settled(mentions, mention, column + block.start)
        settled = {name: settled[name] for name in COMPONENTS if name in settled}
        self._margins.calibrate({name: block.scores[name][mention, column] for name in settled}, settled)

    def _settled(self, mentions: Side, mention: Tensor, row: Tensor) -> Vectors:
        self._margins.count(settled=len(row))
        return self._pairs.scores(mentions, mention, row)

    # -- what callers give --------------------------------------------------------------------------------------------

    def _blocks(self, mentions: Side) -> Iterator[tuple[int, Side]]:
        _check_finite(mentions)
        count = _count(mentions)
        size = self._sizes.mentions_of(count)
        for start in range(0, max(1, count), size):
            part = mentions.take(slice(start, start + size))
            index = torch.arange(_count(part)) if part.image_index is None else part.image_index
            item, visual = (
                {name: _working(tensor, self.device) for name, tensor in tensors.items()}
                for tensors in (part.item, part.visual)
            )
            side = Side(item, visual, index.to(self.device))
            if not self._margins.calibrated and _count(side):
                self._calibrate(side)
            yield start, side

    def _size(self, mentions: Side) -> int:
        """Entities to scan at a time."""
        return self._block or self._sizes.entities_with(_count(mentions))

    def _candidate_rows(self, candidates: Candidates, mentions: int) -> list[Tensor]:
        if len(candidates) != mentions:
            raise InputError("candidates", f"one list of ids for each of {mentions} mentions", f"{len(candidates)}")
        named = [(number, own) for number, own in enumerate(candidates, 1) if not isinstance(own, Tensor)]
        for number, ids in named:
            if isinstance(ids, str) or not all(isinstance(one, str) for one in ids):
                raise InputError(f"candidates, mention {number}", "a list of ids, each a string", repr(ids))
        found = self.index.find([one for _, ids in named for one in ids]).split([len(ids) for _, ids in named])
        by_id = {number: rows for (number, _), rows in zip(named, found, strict=True)}
        return [self._checked(number, own, by_id.get(number)) for number, own in enumerate(candidates, 1)]

    def _checked(self, number: int, given: Sequence[str] | Tensor, found: Tensor | None) -> Tensor:
        """The rows that a mention's candidates stand for, ``found`` of ids; refused where one is no live entity."""
        if found is None:
            assert isinstance(given, Tensor)
            if given.dtype != torch.int64 or given.dim() != 1:
                got = f"{given.dtype} of shape {tuple(given.shape)}"
                raise InputError(f"candidates, mention {number}", "ids, or rows int64 [C]", got)
            found = given.cpu()
        outside = (found < 0) | (found >= self.index.rows)
        unknown = outside | ~self.index.live[found.masked_fill(outside, 0)]
        if unknown.any():
            place = int(unknown.nonzero()[0])
            one = given[place]
            got = repr(one) if isinstance(one, str) else f"row {int(one)}"
            raise InputError(f"candidates, mention {number}", "ids of entities in the index", got)
        return found

    def _check_gold(self, gold: Tensor, mentions: int) -> None:
        if gold.shape != (mentions,):
            raise InputError("gold", f"one row for each of {mentions} mentions", f"shape {tuple(gold.shape)}")
        outside = (gold < 0) | (gold >= self.index.rows)
        removed = ~self.index.live[gold.clamp(0, self.index.rows - 1)]
        for wrong, got in ((outside, "no row of it"), (removed, "a removed entity")):
            if wrong.any():
                place = int(wrong.nonzero()[0])
                expected = f"a row of the index, 0 to {self.index.rows - 1}"
                raise InputError(f"gold, mention {place + 1}", expected, f"{int(gold[place])}, {got}")


def _check_finite(mentions: Side) -> None:
    for kind, tensors in (("mention", mentions.item), ("image", mentions.visual)):
        for name, tensor in tensors.items():
            wrong = ~tensor.flatten(1).isfinite().all(dim=1)
            if wrong.any():
                where = f"mentions, {kind} {int(wrong.nonzero()[0]) + 1}"
                raise InputError(where, "finite features", f"NaN or infinity in {name}")


def _working(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device) if tensor.dtype == torch.bool else tensor.to(device, torch.float32)


def _count(side: Side) -> int:
    if side.image_index is not None:
        return len(side.image_index)
    return len(next(iter((side.item or side.visual).values())))


def _listed(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mention and row [P] of lists of rows, one a mention."""
    counts = torch.tensor([len(one) for one in rows], dtype=torch.int64)
    return torch.arange(len(rows)).repeat_interleave(counts), torch.cat([torch.empty(0, dtype=torch.int64), *rows])
