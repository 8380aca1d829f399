"""A million entities on disk (``--scale million``): opening, one mention's best ten, and throughput."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.limits import entity_bytes, pair_work
from bench.machine import isa_levels
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import Worker

MENTIONS = 64
SMALL = "best ten of 64 mentions, KB of WikiMEL's size"


@pytest.fixture(scope="module")
def large(
    index: Callable[[str, int], str], expected: Callable[[str, int], str], large_entities: int
) -> Iterator[tuple[Worker, Path]]:
    path = index("m3el", large_entities)
    options = {"index": path, "expected": expected("m3el", large_entities), "mentions": MENTIONS}
    with Worker("bench.cases.large:Large", options) as worker:
        worker.call("verify")
        yield worker, Path(path)


def test_one_mention(
    large: tuple[Worker, Path], large_entities: int, measure: Measure, scale: Scale, read_bandwidth: float
) -> None:
    worker, path = large
    read = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    measure.time(lambda: worker.call("one_mention"), scale.short_rounds)
    share = worker.call("images_per_entity")
    measure.record(
        f"best ten of one mention, {isa_levels()[-1]}",
        items=large_entities,
        unit="pairs",
        limit=read / large_entities / read_bandwidth,
        bars={"share of limit": 0.7, "open seconds": 1.0},
        flop=pair_work("m3el", share).flop,
        moved=entity_bytes("m3el", share),
        entities=large_entities,
        bytes_per_entity=read / large_entities,
        bandwidth_GB_s=read_bandwidth / 1e9,
        **{"open seconds": worker.call("open_seconds")},
    )


def test_small_kb(
    measure: Measure,
    large_entities: int,
    scale: Scale,
    index: Callable[[str, int], str],
    expected: Callable[[str, int], str],
) -> None:
    """The same work on the KB of WikiMEL's size: what throughput is compared with."""
    files = {"index": index("m3el", scale.entities), "expected": expected("m3el", scale.entities)}
    with Worker("bench.cases.large:Large", {"mentions": MENTIONS, **files}) as worker:
        worker.call("verify")
        timed(worker, SMALL, scale.entities, measure, scale)


def test_throughput(large: tuple[Worker, Path], large_entities: int, measure: Measure, scale: Scale) -> None:
    bars = {SMALL: 0.97, "peak MB": 600}  # no worse, up to the spread of a measurement
    timed(large[0], "best ten of 64 mentions", large_entities, measure, scale, peers=(SMALL,), bars=bars)


def timed(worker: Worker, name: str, entities: int, measure: Measure, scale: Scale, **options: Any) -> None:
    peak, share = worker.call("peak"), worker.call("images_per_entity")  # the peak's run is the warm-up
    measure.time(lambda: worker.call("run"), scale.rounds, warm=False)
    measure.record(
        name,
        items=MENTIONS * entities,
        unit="pairs",
        peak=peak,
        flop=pair_work("m3el", share).flop,
        moved=entity_bytes("m3el", share) / MENTIONS,
        entities=entities,
        ours=True,
        **options,
    )
