"""The best k entities of each mention of a block, gathered from scanned scores that may be off by a margin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_COMPACT = 1 << 16  # entries that are worth a look at how many of them still count


@dataclass(frozen=True)
class TopK:
    """The best k entities of each mention, on the CPU.

    Attributes:
        rows: [M, k] int64 rows of the index, best first, ties to the lower row; -1 where candidates run out.
        scores: by component (``union``, ``text``, ``image``, ``cross``, ``t2v``, ``v2t`` where the model has it),
            [M, k] fp32; -inf where candidates run out.
        log_partition: log of the sum of exp(union / temperature) over all entities that there were to choose from,
            [M, T] fp64 for T temperatures; -inf where there were none. None = no temperature was given.
    """

    rows: Tensor
    scores: dict[str, Tensor]
    log_partition: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[TopK]) -> TopK:
        """Of parts of the mentions, at least one, one after another."""
        scores = {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores}
        logs = [part.log_partition for part in parts if part.log_partition is not None]
        return cls(torch.cat([part.rows for part in parts]), scores, torch.cat(logs) if logs else None)


class Selection:
    """Every entry of M mentions whose exact score may be among the k best, on the device of the scores.

    If no scanned score is off by more than ``margin``, an entry that lies more than twice that below the k-th best
    scanned score cannot be.
    """

    def __init__(self, mentions: int, k: int, margin: float, device: torch.device) -> None:
        self.k, self.margin = k, margin
        self._best = torch.full((mentions, k), -math.inf, device=device)
        self._entries: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count, self._limit = 0, _COMPACT

    def offer(self, scores: Tensor, start: int, eligible: Tensor) -> None:
        """Take in the scores [M, n] of the rows from ``start`` on, of which ``eligible`` [n] bool may be chosen.

        Waits for the device twice, for the number of mentions and of entries that it concerns.
        """
        scores = scores.masked_fill(~eligible, -math.inf)
        better = (scores.amax(dim=1) > self._best[:, -1]).nonzero()[:, 0]
        if len(better):
            pool = torch.cat([self._best[better], scores[better]], dim=1)
            self._best[better] = pool.topk(self.k, dim=1).values
        mention, column = ((scores >= self._threshold()[:, None]) & eligible).nonzero(as_tuple=True)
        self._entries.append((mention, column + start, scores[mention, column]))
        self._count += len(mention)
        if self._count > self._limit:
            self._entries = [self.entries()]
            self._count = len(self._entries[0][0])
            self._limit = max(_COMPACT, 2 * self._count)

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mention, row and scanned score [P] of what still counts."""
        mention, row, score = (torch.cat(column) for column in zip(*self._entries, strict=True))
        keep = score >= self._threshold()[mention]
        return mention[keep], row[keep], score[keep]

    def _threshold(self) -> Tensor:
        return threshold(self._best[:, -1], self.margin)


def threshold(last: Tensor, margin: float) -> Tensor:
    """The least scanned scores [M] that may be among the k best, ``last`` [M] being the k-th best scanned ones."""
    # an infinite k-th score less an infinite margin is no number: nothing can be ruled out
    return (last - 2 * margin).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def best(mention: Tensor, row: Tensor, scores: Mapping[str, Tensor], log_partition: Tensor, k: int) -> TopK:
    """The k best by the union score of settled entries [P], of M mentions; NaN counts as the least.

    Args:
        log_partition: [M, T], for the result.
    """
    mentions = len(log_partition)
    order = row.argsort(stable=True)
    union = scores["union"].nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    order = order[union[order].argsort(descending=True, stable=True)]
    order = order[mention[order].argsort(stable=True)]
    count = mention.bincount(minlength=mentions)
    place = torch.arange(len(order), device=row.device) - (count.cumsum(0) - count)[mention[order]]
    order, place = order[place < k], place[place < k]
    at = (mention[order], place)
    rows = row.new_full((mentions, k), -1).index_put(at, row[order])
    blank = union.new_full((mentions, k), -math.inf)
    placed = {name: blank.index_put(at, score[order]).cpu() for name, score in scores.items()}
    return TopK(rows.cpu(), placed, log_partition.cpu() if log_partition.shape[1] else None)
