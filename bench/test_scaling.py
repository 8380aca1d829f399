"""Time and peak memory against the number of entities, mentions and threads and the batch, with fitted exponents.

A point is [x, median seconds, peak bytes], against E of one call after the warm-up; the exponent is the slope of log
seconds over log x by least squares.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from bench.measure import Measure
from bench.scales import Scale
from bench.worker import Worker

MENTIONS = 64


class Ranking(NamedTuple):
    """``entities``: numbers of them, ascending, the last being the whole KB."""

    worker: Worker
    entities: list[int]


@pytest.fixture(scope="module")
def ranking(
    request: pytest.FixtureRequest,
    scale: Scale,
    index: Callable[[str, int], str],
    expected: Callable[[str, int], str],
) -> Iterator[Ranking]:
    whole = request.getfixturevalue("large_entities") if scale.large else scale.entities
    entities = geometric(scale.smallest_kb, whole, 5)
    files = {"index": index("m3el", whole), "expected": expected("m3el", whole)}
    with Worker("bench.cases.scaling:Scan", {"mentions": MENTIONS, **files}) as worker:
        for size in (entities[0], whole):
            worker.call("verify", size)
        yield Ranking(worker, entities)


@pytest.mark.parametrize("axis", ["E", "M", "threads"])
def test_ranking(axis: str, ranking: Ranking, measure: Measure, scale: Scale) -> None:
    """The best ten; M and threads are varied at the middle one of the KB's sizes."""
    worker, entities = ranking
    threads, middle = torch.get_num_threads(), entities[len(entities) // 2]
    settings = {  # x -> mentions, entities, threads
        "E": {x: (MENTIONS, x, threads) for x in entities},
        "M": {x: (x, middle, threads) for x in (1, 4, 16, MENTIONS)},
        "threads": {x: (MENTIONS, middle, x) for x in up_to(threads)},
    }[axis]
    if len(settings) == 1:
        pytest.skip("one thread (OMP_NUM_THREADS, or the machine's number)")
    points = curve(worker, settings, measure, 1 if axis == "E" else scale.rounds)
    mentions, size, _ = settings[max(settings)]
    record(measure, f"best ten, scaling with {axis}", mentions * size, "pairs", axis, points)


def test_training(measure: Measure, scale: Scale) -> None:
    batches = sorted({max(2, scale.batch // divisor) for divisor in (8, 4, 2, 1)})
    with Worker("bench.cases.scaling:Steps", {"batches": batches}) as worker:
        worker.call("verify")
        points = curve(worker, {batch: (batch,) for batch in batches}, measure, scale.short_rounds)
    record(measure, "training, fp32, scaling with B", 1, "steps", "B", points)


def curve(worker: Worker, settings: Mapping[int, Sequence[int]], measure: Measure, rounds: int) -> list[list[float]]:
    """A point for each x; pytest-benchmark times the last one's calls too."""
    points = []
    for x, options in settings.items():
        peak = worker.call("peak", *options)  # its run is the warm-up
        seconds: list[float] = []
        run = partial(_run, worker, options, seconds)
        if x == max(settings):
            measure.time(run, rounds, warm=False)
        else:
            for _ in range(rounds):
                run()
        points.append([x, statistics.median(seconds[-rounds:]), peak])
    return points


def _run(worker: Worker, options: Sequence[int], seconds: list[float]) -> None:
    seconds.append(worker.call("run", *options))


def record(measure: Measure, name: str, items: int, unit: str, axis: str, points: list[list[float]]) -> None:
    scaling: dict[str, Any] = {"axis": axis, "points": points, "exponent": exponent(points)}
    measure.record(name, items=items, unit=unit, peak=int(points[-1][2]), scaling=scaling)


def exponent(points: list[list[float]]) -> float:
    """Slope of log seconds over log x."""
    x, seconds = np.log(np.array(points)[:, :2].T)
    return float(np.polyfit(x, seconds, 1)[0])


def geometric(first: int, last: int, count: int) -> list[int]:
    return [round(x) for x in np.geomspace(first, last, count)]


def up_to(threads: int) -> list[int]:
    """Powers of two below ``threads``, and ``threads``."""
    return sorted({2**i for i in range(threads.bit_length())} | {threads})
