"""A pytest plugin: a GPU whose clock and memory only calls move, for the code that measures on one.

``work(seconds, size)`` is what a call does there.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

CLOCK = {"now": 0.0, "allocated": 5000, "peak": 5000, "written": 0}


def work(seconds: float, size: int) -> None:
    """Takes ``seconds``, holding ``size`` bytes."""
    CLOCK["now"] += seconds
    CLOCK["peak"] = max(CLOCK["peak"], CLOCK["allocated"] + size)


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = CLOCK["now"]

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


def write() -> None:
    """Before a round: not in its time."""
    work(1.0, 1 << 30)
    CLOCK["written"] += 1


def reset() -> None:
    CLOCK["peak"] = CLOCK["allocated"]


CHIP = SimpleNamespace(name="Planted GPU", multi_processor_count=7, total_memory=8e9)
FAKES = {
    "is_available": lambda: True,
    "device_count": lambda: 0,
    "get_device_properties": lambda index: CHIP,
    "Event": Event,
    "synchronize": lambda: None,
    "empty_cache": lambda: None,
    "memory_allocated": lambda: CLOCK["allocated"],
    "max_memory_allocated": lambda: CLOCK["peak"],
    "reset_peak_memory_stats": reset,
}
for name, fake in FAKES.items():
    setattr(torch.cuda, name, fake)

from bench import gpu_timing  # noqa: E402 - what asks for a GPU when it is imported finds one

gpu_timing.write = write
gpu_timing.time = SimpleNamespace(perf_counter=lambda: CLOCK["now"])
