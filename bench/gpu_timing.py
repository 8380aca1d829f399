"""One measurement on a GPU: as :mod:`bench.measure`, in CUDA events and with the allocator's memory.

Every round starts behind a gigabyte that the GPU writes. So L2 holds nothing of what the call reads, and the host
issues the call meanwhile: launches do not count, host work beyond the third of a millisecond that the writing takes
does. The round ends with the call's last kernel; then the device is synchronised.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from bench.gpu_cases import COMPILED, OURS, Call, Case
from bench.measure import Measure

_WRITTEN = 1 << 30  # bytes; L2 holds 50 MB on an H100
_SECONDS, _MOST, _LEAST = 0.5, 100, 3  # of timed rounds; how many

_Result = TypeVar("_Result")


class Instant:
    """pytest-benchmark's clock: a place in the current stream; differences are seconds."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def __sub__(self, earlier: Instant) -> float:
        torch.cuda.synchronize()
        return float(earlier._event.elapsed_time(self._event)) / 1e3


@dataclass
class Noted:
    """What this session knows of forms by their titles: peak bytes, and why a peer was not measured."""

    peaks: dict[str, int] = field(default_factory=dict)
    obstacles: dict[str, str] = field(default_factory=dict)


class GPUMeasure(Measure):
    """Checks, times and records forms of GPU benchmarks; without a GPU, and without ``--benchmark``, nothing is timed.

    Args:
        noted: of the session; the others as of :class:`Measure`.
    """

    def __init__(self, benchmark: Any, records: dict[str, float], results: list[dict[str, Any]], noted: Noted) -> None:
        super().__init__(benchmark, records, results)
        self._noted = noted

    def form(self, name: str, case: Case, form: str) -> None:
        """Measure a form of the case ``name``. Peers come before ours, which is compared with them.

        A peer that runs out of memory, or that torch.compile cannot compile, is skipped, and its place in our record
        says why. A wrong result fails, whoever gives it.
        """
        timing = not self._benchmark.disabled
        if form == COMPILED and not timing:
            pytest.skip("torch.compile takes up to a minute: only with --benchmark")
        title = name if form == OURS else f"{name}: {form}"
        call, peak = case.calls[form], None
        result, obstacle = _attempt(call if timing else partial(self._benchmark.pedantic, call), form)
        if not obstacle:
            facts = case.check(form, result)
            del result
            if timing:
                peak, obstacle = _attempt(partial(self._timed, call), form)
        if obstacle:
            self._noted.obstacles[title] = obstacle
            pytest.skip(f"{title}: {obstacle}")
        if peak is not None:
            self._noted.peaks[title] = peak
        peers = {peer: f"{name}: {peer}" for peer in case.calls if peer != OURS} if form == OURS else {}
        self.record(
            title,
            items=case.slices.get(form, case.items),
            unit=case.unit,
            peers=tuple(peers.values()),
            bars={peers.get(key, key): bar for key, bar in case.bars.items()} if form == OURS else {},
            limit=case.limit / case.items if case.limit is not None and form == OURS else None,
            peak=peak,
            flop=None if case.flop is None else case.flop / case.items,
            moved=None if case.moved is None else case.moved / case.items,
            **facts,
            **self._against(case, peers, peak),
        )

    def _against(self, case: Case, peers: dict[str, str], peak: int | None) -> dict[str, object]:
        """Ratios of memory to peers that work on as much, and why others were not measured."""
        found: dict[str, object] = {}
        for peer, title in peers.items():
            if title in self._noted.obstacles:
                found[peer] = f"not measured: {self._noted.obstacles[title]}"
            elif peak and title in self._noted.peaks and peer not in case.slices:
                found[f"memory x {peer}"] = self._noted.peaks[title] / peak
        return found

    def _timed(self, call: Call) -> int:
        """Time a call that has run once; returns its peak of memory."""
        write()
        peak, seconds = peak_memory(call)
        rounds = min(_MOST, max(_LEAST, round(_SECONDS / seconds)))
        self._benchmark.pedantic(call, setup=write, rounds=rounds, warmup_rounds=max(1, rounds // 10))
        return peak


def _attempt(call: Callable[[], _Result], form: str) -> tuple[_Result | None, str]:
    """What the call returns, or the obstacle."""
    try:
        return call(), ""
    except torch.OutOfMemoryError:
        if form == OURS:
            raise
        obstacle = "out of memory"
    except Exception as error:  # whatever torch.compile throws
        if form != COMPILED:
            raise
        words = str(error).strip().partition("\n")[0][:200]
        obstacle = f"failed: {type(error).__name__}{f': {words}' if words else ''}"
    torch.cuda.empty_cache()
    return None, obstacle


def peak_memory(call: Call) -> tuple[int, float]:
    """Bytes that the allocator gives out at most while ``call`` runs, beyond what it had, and the call's seconds."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, time.perf_counter() - start


def write() -> None:
    """What the GPU does ahead of every round."""
    _buffer().zero_()


@cache
def _buffer() -> Tensor:
    return torch.empty(_WRITTEN, dtype=torch.int8, device="cuda")
