"""A training step of the preset ``sample``, whole and in parts, and the batches that it needs. No peers."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.cases.sample import sample_set
from bench.cases.training_step import PARTS
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import Worker

STEP = "training step, preset sample"


@pytest.fixture(scope="module")
def worker(scale: Scale, folder: Path) -> Iterator[Worker]:
    data = sample_set(folder, scale.houses)
    environment = {"M3EL_CACHE": str(folder / "cache")}
    with Worker("bench.cases.training_step:Step", {"data": str(data), "batch": scale.batch}, environment) as worker:
        worker.call("verify")
        yield worker


def test_step(worker: Worker, measure: Measure, scale: Scale) -> None:
    """Each part's median milliseconds and share of the step; "batch" is reading its texts and pictures."""
    steps: list[dict[str, float]] = []
    measure.time(lambda: steps.append(worker.call("run")), scale.short_rounds)
    medians = {part: statistics.median(step[part] for step in steps[-scale.short_rounds :]) for part in PARTS}
    whole = sum(medians.values())
    facts: dict[str, Any] = {f"{part} ms": seconds * 1e3 for part, seconds in medians.items()}
    facts |= {f"{part} share": seconds / whole for part, seconds in medians.items()}
    measure.record(
        STEP,
        items=1,
        unit="steps",
        peak=worker.call("peak"),
        batch=scale.batch,
        **facts,
    )


def test_batches(worker: Worker, measure: Measure, scale: Scale, records: dict[str, float]) -> None:
    """Batches of the training split from the image cache, and how many a second the steps take."""
    measure.time(lambda: worker.call("load"), scale.short_rounds)
    needed = {"needed/s": 1 / records[STEP]} if STEP in records else {}
    facts: dict[str, Any] = {"batch": scale.batch, **needed}
    measure.record("training batches, preset sample", items=1, unit="batches", **facts)
