"""A million entities on disk (``--scale million``): opening, one mention's best ten, and throughput."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.machine import isa_levels
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import Worker

MENTIONS = 64
SMALL = "best ten of 64 mentions, KB of WikiMEL's size"


@pytest.fixture(scope="module")
def large(index: Callable[[str, int], str], large_entities: int) -> Iterator[tuple[Worker, Path]]:
    path = index("m3el", large_entities)
    with Worker("bench.cases.large:Large", {"index": path, "mentions": MENTIONS}) as worker:
        worker.call("verify")
        yield worker, Path(path)


def test_one_mention(
    large: tuple[Worker, Path], large_entities: int, measure: Measure, scale: Scale, read_bandwidth: float
) -> None:
    worker, path = large
    read = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    measure.time(lambda: worker.call("one_mention"), scale.short_rounds)
    measure.record(
        f"best ten of one mention, {isa_levels()[-1]}",
        items=large_entities,
        unit="pairs",
        limit=read / large_entities / read_bandwidth,
        bars={"share of limit": 0.7, "open seconds": 1.0},
        entities=large_entities,
        bytes_per_entity=read / large_entities,
        bandwidth_GB_s=read_bandwidth / 1e9,
        **{"open seconds": worker.call("open_seconds")},
    )


def test_small_kb(measure: Measure, large_entities: int, scale: Scale, index: Callable[[str, int], str]) -> None:
    """The same work on the KB of WikiMEL's size: what throughput is compared with."""
    options = {"index": index("m3el", scale.entities), "mentions": MENTIONS}
    with Worker("bench.cases.large:Large", options) as worker:
        worker.call("verify")
        measure.time(lambda: worker.call("run"), scale.rounds)
        measure.record(SMALL, items=MENTIONS * scale.entities, unit="pairs", peak=worker.call("peak"))


def test_throughput(large: tuple[Worker, Path], large_entities: int, measure: Measure, scale: Scale) -> None:
    worker, _ = large
    measure.time(lambda: worker.call("run"), scale.rounds)
    measure.record(
        "best ten of 64 mentions",
        items=MENTIONS * large_entities,
        unit="pairs",
        peers=(SMALL,),
        bars={SMALL: 0.97, "peak MB": 600},  # no worse, up to the spread of a measurement
        peak=worker.call("peak"),
        entities=large_entities,
    )
