"""How far scanned scores may lie from exact ones, watched at run time, and counts of the work done."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

_FACTOR = 4.0
_FLOOR = 2.0**-20  # of the largest score in the sample: 8 units in the last place of fp32


@dataclass(frozen=True)
class Stats:
    """What a scorer did so far; all counts and values are of its whole life.

    Attributes:
        scanned: mention-entity pairs scanned, those of repeated scans and those scanned for candidates included.
        reranked: candidates that a coarse scan chose, all of whose score was computed then.
        settled: scores of single pairs, each of one component, that were computed again.
        repeats: blocks of mentions whose selection was repeated because a margin had been too small.
        error: by component, largest difference seen between a scanned score and the same score settled.
        margin: by component, how far a scanned score may lie from a bound before it decides without being settled.
    """

    scanned: int
    reranked: int
    settled: int
    repeats: int
    error: dict[str, float]
    margin: dict[str, float]

    def describe(self) -> str:
        """One line for a command's output."""
        share = 100 * self.settled / max(1, self.scanned)
        again = f"{self.settled:,} scored again ({share:.2g}%)"
        if self.reranked:
            again = f"{self.reranked:,} candidates reranked, {again}"
        if "union" not in self.error:
            return f"{self.scanned:,} pairs scanned, {again}"
        seen = f"largest error {self.error['union']:.2g}, margin {self.margin['union']:.2g}"
        blocks = "1 block" if self.repeats == 1 else f"{self.repeats} blocks"
        return f"{self.scanned:,} pairs scanned, {again}; union: {seen}; {blocks} repeated"


class Margins:
    """The margin of each component: 4 x the largest error of a first sample, at least 2^-20 of its largest score.

    Every pair that is settled later is checked: an error beyond half its margin sets the margin to 4 x that error.
    Safe to use from several threads.

    Args:
        checked: False = scanned scores count as they are: margins stay at their floor.
    """

    def __init__(self, checked: bool) -> None:
        self.checked = checked
        self._lock = threading.Lock()
        self._margin: dict[str, float] = {}
        self._error: dict[str, float] = {}
        self._scanned = self._reranked = self._settled = self._repeats = 0

    @property
    def calibrated(self) -> bool:
        return bool(self._margin)

    def of(self, name: str) -> float:
        """The margin of a component; 0 before there was a sample."""
        with self._lock:
            return self._margin.get(name, 0.0)

    def calibrate(self, scanned: Mapping[str, Tensor], settled: Mapping[str, Tensor]) -> None:
        """Set the margins from a sample: scores [P] of the same pairs, by component."""
        with self._lock:
            for name, exact in settled.items():
                error = largest_error(scanned[name], exact)
                finite = exact[exact.isfinite()]
                floor = _FLOOR * float(finite.abs().max()) if len(finite) else 0.0
                self._error[name] = max(error, self._error.get(name, 0.0))
                margin = max(_FACTOR * error, floor) if self.checked else floor
                self._margin[name] = max(margin, self._margin.get(name, 0.0))

    def holds(self, name: str, used: float, scanned: Tensor, settled: Tensor) -> bool:
        """Whether the margin ``used`` was wide enough for these pairs [P]; if not, it is wider from now on."""
        error = largest_error(scanned, settled)
        with self._lock:
            self._error[name] = max(error, self._error.get(name, 0.0))
            if not self.checked or error <= used / 2:
                return True
            self._margin[name] = max(_FACTOR * error, self._margin.get(name, 0.0))
            return False

    def count(self, scanned: int = 0, reranked: int = 0, settled: int = 0, repeats: int = 0) -> None:
        with self._lock:
            self._scanned += scanned
            self._reranked += reranked
            self._settled += settled
            self._repeats += repeats

    def stats(self) -> Stats:
        with self._lock:
            counts = (self._scanned, self._reranked, self._settled, self._repeats)
            return Stats(*counts, dict(self._error), dict(self._margin))


def largest_error(scanned: Tensor, settled: Tensor) -> float:
    """Largest |scanned - settled| of two vectors; infinite where one of two scores is and the other is not the same."""
    if not len(scanned):
        return 0.0
    error = (scanned - settled).abs().masked_fill(scanned == settled, 0.0)
    return float(error.nan_to_num(nan=math.inf, posinf=math.inf).max())
