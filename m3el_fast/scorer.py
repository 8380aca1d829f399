"""Mentions against every entity of an index, streamed and exact: ranks of golds, the best k, scores."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Literal

import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.devices import named_device
from m3el_fast.errors import InputError
from m3el_fast.features import Scores, Vectors
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Side
from m3el_fast.models import MELModel
from m3el_fast.scoring.block import COMPONENTS, BlockScorer, listed, mention_count
from m3el_fast.scoring.candidates import candidate_number
from m3el_fast.scoring.entities import entities_on
from m3el_fast.scoring.given import Candidates, candidate_rows, check_finite, check_gold, check_temperatures
from m3el_fast.scoring.margins import Margins, Stats
from m3el_fast.scoring.memory import sizes_on
from m3el_fast.scoring.scan import Scanner
from m3el_fast.scoring.selection import TopK

__all__ = ["COMPONENTS", "Scorer", "Stats", "TopK"]

_BATCH = 256  # mentions that are encoded at a time, on a CPU


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
        self._entities = entities_on(self.device, index)
        self._sizes = sizes_on(self.device)
        self._scanner = Scanner(matcher, self._entities, scanning)
        self._margins = Margins(checked=precision != "bf16")
        parts = (index, self._entities, self._scanner, settling, self._margins, self.device)
        self._scorer = BlockScorer(matcher, *parts)

    @property
    def batch(self) -> int:
        """Mentions to give a call at least, where there are as many; a streamed index goes to the GPU once a block."""
        return max(_BATCH, self._sizes.mentions)

    @property
    def stats(self) -> Stats:
        """Pairs scanned and scored again so far, errors seen and margins in use."""
        return self._margins.stats()

    @torch.inference_mode()
    def topk(
        self,
        mentions: Side,
        k: int,
        candidates: Candidates | int | None = None,
        temperatures: Sequence[float] = (),
    ) -> TopK:
        """The k best entities of each of M mentions, with component scores.

        Args:
            candidates: for each mention the ids, or int64 rows of the index, to choose from, all settled without a scan
                (they may repeat, and count once); or a number of at least k, in two stages: a coarse score, all terms
                of the union score that are inner products (spec section 5.1), chooses so many entities for each
                mention, identical ones counting as one, and the exact score the k best of these, which is fast, and
                misses what the coarse score ranks lower (``bench.recall`` measures how often); None = all entities.
            temperatures: for each of them, :attr:`TopK.log_partition` sums exp(union / temperature) over all that
                there is to choose from, identical entities one by one, in the scan that is made anyway. Settled scores
                (those of the result at least) go into it as they are, others as the scan gives them, so that it is off
                by at most e / temperature times the rest's share of the sum, e the error of the scan
                (:attr:`Stats.error`). It adds one exponential for each pair and temperature.

        Raises:
            InputError: k is not in 1..E, a candidate is not in the index, there are fewer candidates than k or the
                model has no coarse score, a temperature is not above 0, or a feature is not finite.
        """
        given = check_temperatures(temperatures)
        self._check_k(k)
        number = candidate_number(candidates, k)
        rows = None
        if candidates is not None and number is None:
            assert not isinstance(candidates, int)
            rows = candidate_rows(candidates, mention_count(mentions), self.index)
        parts: list[TopK] = []
        for start, block in self._blocks(mentions):
            size = self._size(block)
            if number is not None:
                parts.append(self._scorer.two_stages(block, size, k, min(number, len(self.index)), given))
            elif rows is None:
                parts.append(self._scorer.select(block, size, k, given))
            else:
                parts.append(self._scorer.choose(block, k, rows[start : start + mention_count(block)], given))
        return TopK.joined(parts)

    @torch.inference_mode()
    def ranks(self, mentions: Side, gold: Tensor) -> dict[str, Tensor]:
        """Rank of each mention's gold by component, [M] fp64: 1 + entities above it + half of those level with it
        (spec section 6).

        Args:
            gold: [M] int64 rows of the index.

        Raises:
            InputError: a gold is not a live row of the index, or a feature is not finite.
        """
        parts = [self._scorer.rank(block, self._size(block), own) for block, own in self._with_gold(mentions, gold)]
        return _joined(parts)

    @torch.inference_mode()
    def ranks_and_topk(
        self, mentions: Side, gold: Tensor, k: int, temperatures: Sequence[float] = ()
    ) -> tuple[Vectors, TopK]:
        """What :meth:`ranks` and :meth:`topk` among all entities return, of one scan. Arguments and errors are
        theirs."""
        self._check_k(k)
        given = check_temperatures(temperatures)
        parts = [
            self._scorer.rank_and_select(block, self._size(block), own, k, given)
            for block, own in self._with_gold(mentions, gold)
        ]
        return _joined([ranks for ranks, _ in parts]), TopK.joined([top for _, top in parts])

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
        rows = candidate_rows(candidates, mention_count(mentions), self.index)
        width = max(map(len, rows), default=0)
        parts: list[Vectors] = []
        for start, block in self._blocks(mentions):
            own = rows[start : start + mention_count(block)]
            mention, row = listed(own)
            place = torch.cat([torch.arange(len(one)) for one in own]) if own else mention
            blank = torch.full((len(own), width), -torch.inf)
            scores = self._scorer.settled(block, mention.to(self.device), row.to(self.device))
            parts.append({name: blank.index_put((mention, place), score.cpu()) for name, score in scores.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _matrix(self, mentions: Side, names: tuple[str, ...]) -> Vectors:
        parts = [self._scorer.matrix(block, self._size(block), names) for _, block in self._blocks(mentions)]
        return _joined(parts)

    # -- what callers give --------------------------------------------------------------------------------------------

    def _blocks(self, mentions: Side) -> Iterator[tuple[int, Side]]:
        check_finite(mentions)
        count = mention_count(mentions)
        size = self._sizes.mentions_of(count)
        for start in range(0, max(1, count), size):
            part = mentions.take(slice(start, start + size))
            index = torch.arange(mention_count(part)) if part.image_index is None else part.image_index
            item, visual = (
                {name: _working(tensor, self.device) for name, tensor in tensors.items()}
                for tensors in (part.item, part.visual)
            )
            side = Side(item, visual, index.to(self.device))
            if not self._margins.calibrated and mention_count(side):
                self._scorer.calibrate(side, self._size(side))
            yield start, side

    def _with_gold(self, mentions: Side, gold: Tensor) -> Iterator[tuple[Side, Tensor]]:
        """Blocks with their golds, on the device."""
        check_gold(gold.cpu(), mention_count(mentions), self.index)
        for start, block in self._blocks(mentions):
            yield block, gold[start : start + mention_count(block)].to(self.device)

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= len(self.index):
            raise InputError("k", f"1 to {len(self.index)} (the number of entities)", k)

    def _size(self, mentions: Side) -> int:
        """Entities to scan at a time."""
        return self._block or self._sizes.entities_with(mention_count(mentions))


def _working(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device) if tensor.dtype == torch.bool else tensor.to(device, torch.float32)


def _joined(parts: list[Vectors]) -> Vectors:
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
