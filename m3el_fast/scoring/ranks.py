"""Ranks of golds, counted block by block from scanned scores that may be off by a margin (spec section 6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_FLUSH = 1 << 16  # entries to settle at a time

Settle = Callable[[Tensor, Tensor], Tensor]
Holds = Callable[[Tensor, Tensor], bool]


class MarginTooSmall(Exception):
    """A scanned score was off by more than half the margin that decided results."""


class RankCounter:
    """Counts one component's entities above and level with each gold of M mentions, on the device of the scores.

    What is scored are units: rows of entities, or of distinct images.

    Args:
        gold: [M] fp32, settled scores of the golds, without NaN.
        key: [M] int64, key of each gold: units with this key are identical to it in the component.
        identical: [M] int64, how many live entities have that key.
        margin: how far a scanned score may be off.
        settle: gives settled scores [P] of the pairs (mention, unit), [P] int64 each.
        holds: says whether the margin is wide enough for pairs of scanned and settled scores [P].
    """

    def __init__(
        self, gold: Tensor, key: Tensor, identical: Tensor, margin: float, settle: Settle, holds: Holds
    ) -> None:
        self._gold, self._key, self._settle, self._holds = gold, key, settle, holds
        self._low, self._high = (gold - margin)[:, None], (gold + margin)[:, None]
        self._above = torch.zeros_like(key)
        self._level = identical - 1
        self._open: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        self._count = 0

    def add(self, scores: Tensor, units: Tensor, keys: Tensor, weights: Tensor) -> None:
        """Take in the scores [M, n] of ``units`` [n] int64 with their ``keys`` [n]; each stands for as many live
        entities as its weight [n] int64 says. Waits for the device once, for the number of what stays open.

        Raises:
            MarginTooSmall: count again from the start.
        """
        # the bounds of an infinite gold may be NaN, and then nothing is clear
        identical = keys == self._key[:, None]
        above = (scores > self._high) & ~identical
        self._above += torch.where(above, weights, 0).sum(dim=1)
        # what is identical to the gold shows the scan's error, however large it is
        mention, column = (~((scores < self._low) | above) | identical).nonzero(as_tuple=True)
        self._open.append((mention, units[column], keys[column], weights[column], scores[mention, column]))
        self._count += len(mention)
        if self._count > _FLUSH:
            self._flush()

    def ranks(self) -> Tensor:
        """1 + entities above the gold + half of the others level with it, [M] fp64. Raises as :meth:`add`."""
        if self._open:
            self._flush()
        return 1 + self._above.double() + self._level.double() / 2

    def _flush(self) -> None:
        mention, unit, key, weight, scanned = (torch.cat(column) for column in zip(*self._open, strict=True))
        self._open, self._count = [], 0
        identical = key == self._key[mention]
        rest = ~identical & (weight > 0)
        self._check(scanned[identical], self._gold[mention[identical]])
        mention, unit, weight, scanned = (column[rest] for column in (mention, unit, weight, scanned))
        settled, own = self._settle(mention, unit), self._gold[mention]
        self._check(scanned, settled)
        self._above.index_add_(0, mention, weight * (settled > own))
        self._level.index_add_(0, mention, weight * (settled == own))

    def _check(self, scanned: Tensor, settled: Tensor) -> None:
        if not self._holds(scanned, settled):
            raise MarginTooSmall
