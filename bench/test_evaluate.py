"""``m3el_fast.evaluate`` on the generated sample set with a fresh model: seconds and shares of its parts."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench.cases.sample import sample_set
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import Worker


def test_evaluate(measure: Measure, scale: Scale, folder: Path) -> None:
    data = sample_set(folder, scale.houses)
    parts: list[tuple[float, float]] = []
    environment = {"M3EL_CACHE": str(folder / "cache")}
    with Worker("bench.cases.evaluation:Evaluation", {"data": str(data)}, environment) as worker:
        worker.call("verify")
        measure.time(lambda: parts.append(worker.call("run")), scale.rounds)
        (mentions, entities), encoding, peak = (worker.call(name) for name in ("size", "mention_seconds", "peak"))
    index, rest = (statistics.median(column) for column in zip(*parts[-scale.rounds :], strict=True))
    seconds = {"encoding the KB": index, "encoding mentions": encoding, "ranking": max(0.0, rest - encoding)}
    measure.record(
        "evaluation end to end, sample set",
        items=mentions,
        unit="mentions",
        peak=peak,
        mentions=mentions,
        entities=entities,
        **{f"{part} s": value for part, value in seconds.items()},
        **{f"{part} share": value / sum(seconds.values()) for part, value in seconds.items()},
    )
