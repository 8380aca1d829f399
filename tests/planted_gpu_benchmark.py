"""A file of GPU benchmarks whose calls take what they are told to: run by tests/test_gpu_timing.py with fake_gpu."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench.gpu_cases import COMPILED, EAGER, OURS, PAPER, Call, Case, Cases, Plan, Setting, Sizes
from bench.gpu_device import MARKS
from bench.gpu_timing import GPUMeasure
from fake_gpu import CLOCK, work

pytestmark = MARKS

MADE: list[str] = []


def plans(sizes: Sizes) -> Iterator[Plan]:
    assert sizes.mentions == 5
    yield Plan("long", (PAPER, EAGER, COMPILED), partial(_case, "long", 0.25))
    yield Plan("short", (EAGER,), partial(_case, "short", 1e-5))
    yield Plan("wrong", (EAGER,), partial(_case, "wrong", 0.1))


def test_planted(name: str, form: str, gpu_cases: Cases, gpu_measure: GPUMeasure) -> None:
    gpu_measure.form(name, gpu_cases.get(name), form)


def test_what_was_made() -> None:
    """Each once, in order. A write stands before the call whose memory is read, those that warm, and every round of
    the two that ran of "long", of both of "short", and of the peer of "wrong"."""
    assert MADE == ["long", "short", "wrong"]
    assert CLOCK["written"] == 2 * (1 + 1 + 3) + 2 * (1 + 10 + 100) + (1 + 1 + 3)


def test_cut_off(gpu_measure: GPUMeasure) -> None:
    """Control-C in the second of three rounds: pytest-benchmark holds times of nothing that was recorded."""
    rounds = iter(["warm", "first"])

    def call() -> None:
        if next(rounds, None) is None:
            raise KeyboardInterrupt

    gpu_measure.time(call, 3)


def _case(name: str, seconds: float, setting: Setting) -> Case:
    assert setting.device == "cuda"
    MADE.append(name)

    def timed(seconds: float, size: int) -> Callable[[], str]:
        def run() -> str:
            work(seconds, size)
            return "right"

        return run

    def too_large() -> None:
        raise torch.OutOfMemoryError

    def not_compiled() -> None:
        raise RuntimeError("no such luck\nand more")

    calls: dict[str, Call] = {EAGER: timed(4 * seconds, 3_000_000), OURS: timed(seconds, 100_000)}
    if name == "long":
        calls = {PAPER: timed(seconds, 1_000_000), EAGER: too_large, COMPILED: not_compiled, OURS: calls[OURS]}
    bars = {EAGER: 5.0, f"memory x {EAGER}": 20.0, "share of limit": 0.4, "pairs/s": 1.0}

    def check(form: str, result: str) -> dict[str, object]:
        assert result == "right" and not (name == "wrong" and form == OURS), "planted"
        return {"error": 1e-6}

    slices = {PAPER: 10} if name == "long" else {}
    return Case(calls, check, 100, "pairs", slices, seconds / 2, flop=5e3, moved=1e3, bars=bars)
