"""Times and memory of calls on a GPU, next to peers and goals; on the CPU every call runs once and nothing is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

Call = Callable[[], object]
_LONG = 0.3  # seconds: calls that take longer are timed a few times, shorter ones by triton.testing.do_bench
_ROUNDS = 3


@dataclass(frozen=True)
class Measured:
    """One call: median seconds and spread (interquartile range / median), peak bytes beyond what was there before.

    All None where it was not timed; ``note`` says why, if for another reason than having no GPU.
    """

    seconds: float | None = None
    spread: float | None = None
    peak: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: what ran; error: largest relative error against the reference in fp64, within its tolerance; None = the
            results were compared in another way.
        own: of the kernel; items, unit: how many of what it worked on; peers: by name.
        peer_items: of the peers' calls, where memory forces a slice; they are compared per item.
        limit: least seconds by :mod:`bench.roofline`.
        goals: ``"seconds"`` -> at most; ``"share of limit"``, ``"x PEER"``, ``"memory x PEER"`` (so many times less)
            -> at least.
    """

    name: str
    error: float | None
    own: Measured
    items: int
    unit: str
    peers: dict[str, Measured]
    peer_items: int
    limit: float | None = None
    goals: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)

    def ratios(self) -> dict[str, float]:
        """How many times less time (``x PEER``) and memory (``memory x PEER``) the kernel takes."""
        found = {}
        for name, peer in self.peers.items():
            if peer.seconds is not None and self.own.seconds is not None:
                found[f"x {name}"] = peer.seconds / self.peer_items / (self.own.seconds / self.items)
            if peer.peak is not None and self.own.peak and self.peer_items == self.items:
                found[f"memory x {name}"] = peer.peak / self.own.peak
        return found

    def outcomes(self) -> dict[str, str]:
        """``met``, ``missed`` or ``not measured`` for each goal."""
        values = self.ratios()
        if self.own.seconds is not None:
            values["seconds"] = self.own.seconds
            if self.limit is not None:
                values["share of limit"] = self.limit / self.own.seconds
        return {key: _outcome(key, goal, values.get(key)) for key, goal in self.goals.items()}

    def text(self) -> str:
        facts = [self._measured(self.own, self.items)]
        if self.error is not None:
            facts.append(f"error {self.error:.1e}")
        if self.limit is not None and self.own.seconds is not None:
            facts.append(f"{self.limit / self.own.seconds:.0%} of the limit")
        facts += [f"{key} {value}" for key, value in self.facts.items()]
        lines = [self.name, f"    {'; '.join(facts)}"]
        ratios = self.ratios()
        for name, peer in self.peers.items():
            factors = [f"{key} {ratios[key]:,.3g}" for key in (f"x {name}", f"memory x {name}") if key in ratios]
            lines.append(f"    {name}: {', '.join([self._measured(peer, self.peer_items), *factors])}")
        lines += [f"    goal {key} {goal:g}: {self.outcomes()[key]}" for key, goal in self.goals.items()]
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        return asdict(self) | {"ratios": self.ratios(), "outcomes": self.outcomes()}

    def _measured(self, one: Measured, items: int) -> str:
        if one.seconds is None:
            return f"not measured{f' ({one.note})' if one.note else ''}"
        rate = f"{items / one.seconds:,.4g} {self.unit}/s"
        peak = "" if one.peak is None else f", peak {one.peak / 1e6:,.4g} MB"
        return f"{one.seconds * 1e3:,.4g} ms (spread {one.spread:.1%}), {rate}{peak}"


def _outcome(key: str, goal: float, value: float | None) -> str:
    if value is None:
        return "not measured"
    return "met" if (value <= goal if key == "seconds" else value >= goal) else "missed"


def measure(call: Call, device: str) -> Measured:
    """Run ``call`` until it is warm, then time it."""
    if device != "cuda":
        call()
        return Measured()
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    once = _seconds(call)
    peak = torch.cuda.max_memory_allocated() - before
    if once > _LONG:
        times = [_seconds(call) for _ in range(_ROUNDS)]
    else:
        from triton.testing import do_bench

        times = [ms / 1e3 for ms in do_bench(call, return_mode="all")]
    return Measured(statistics.median(times), _spread(times), peak)


def measure_peer(call: Call, device: str) -> Measured:
    """As :func:`measure`; a peer that fails, for want of memory above all, is noted and hides nothing."""
    try:
        return measure(call, device)
    except torch.OutOfMemoryError:
        return Measured(note="out of memory")
    except Exception as error:  # whatever torch.compile throws
        return Measured(note=f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _spread(times: list[float]) -> float:
    if len(times) < 4:
        return (max(times) - min(times)) / statistics.median(times)
    low, median, high = statistics.quantiles(times, n=4)
    return (high - low) / median
