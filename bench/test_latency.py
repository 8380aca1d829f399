"""Single-mention latency: encoding and scoring apart; scoring first in a fresh process and warm, p50 and p99.

At ``--scale million`` against a KB of a million entities as well.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.cases.latency import Encoding
from bench.limits import COARSE, pair_work, seconds_per_pair
from bench.machine import isa_levels
from bench.measure import Measure
from bench.scales import SCALES, Scale
from bench.worker import Worker

EXACT = "one mention, exact scan"
TWO_STAGES = 100  # candidates


def test_encoding(measure: Measure, scale: Scale, matmul_rates: tuple[float, float], read_bandwidth: float) -> None:
    """The limit is fp32 products at the matmul rate, or reading all weights once."""
    case = Encoding(tiny=scale is SCALES["tiny"])
    case.verify()
    percentiles = timed(case.run, measure, scale)
    limit = max(case.flop() / matmul_rates[0], case.weight_bytes() / read_bandwidth)
    measure.record(
        "one mention, encoding",
        items=1,
        unit="mentions",
        limit=limit,
        peak=case.peak(),
        flop=case.flop(),
        moved=case.weight_bytes(),
        **percentiles,
    )


@pytest.mark.parametrize("candidates", [None, TWO_STAGES])
@pytest.mark.parametrize("kb", ["wikimel", "large"])
def test_scoring(
    kb: str,
    candidates: int | None,
    measure: Measure,
    scale: Scale,
    request: pytest.FixtureRequest,
    index: Callable[[str, int], str],
    expected: Callable[[str, int], str],
    matmul_rates: tuple[float, float],
    read_bandwidth: float,
) -> None:
    """The limit is reading what a call needs, or the exact scan's arithmetic."""
    entities = scale.entities if kb == "wikimel" else request.getfixturevalue("large_entities")
    suffix = "" if kb == "wikimel" else f", {entities:,} entities"
    files = {"index": index("m3el", entities), "expected": expected("m3el", entities)}
    options = {"entities": entities, "candidates": candidates, **files}
    cold = []
    for _ in range(scale.rounds // 2):
        with Worker("bench.cases.latency:Linking", options) as worker:
            cold.append(worker.call("cold"))
    with Worker("bench.cases.latency:Linking", options) as worker:
        cold.append(worker.call("cold"))
        worker.call("verify")
        percentiles = timed(lambda: worker.call("run"), measure, scale)
        peak, read, images = (worker.call(name) for name in ("peak", "bytes_read", "images_per_entity"))
    limit, level = read / read_bandwidth, isa_levels()[-1]
    if candidates is None and level not in ("scalar", "reference"):
        wide = level.startswith(("avx512", "amx"))
        limit = max(limit, entities * seconds_per_pair(pair_work("m3el", images), level, *matmul_rates, wide))
    flop = entities * pair_work("m3el", images).flop
    if candidates is not None:  # the coarse score of all entities, and all of it for the candidates
        flop = 2.0 * COARSE * entities + candidates * pair_work("m3el", 1.0).flop
    cold_facts: dict[str, Any] = {"cold ms": statistics.median(cold) * 1e3, "cold processes": len(cold)}
    measure.record(
        (EXACT if candidates is None else f"one mention, two stages, {candidates} candidates") + suffix,
        items=1,
        unit="mentions",
        peers=() if candidates is None else (EXACT + suffix,),
        limit=limit,
        peak=peak,
        flop=flop,
        moved=read,
        entities=entities,
        ours=True,
        **cold_facts,
        **percentiles,
    )


def timed(run: Callable[[], float], measure: Measure, scale: Scale) -> dict[str, Any]:
    """Percentiles in ms of the seconds that ``scale.calls`` calls say they took; pytest-benchmark times them too."""
    seconds: list[float] = []
    measure.time(lambda: seconds.append(run()), scale.calls)
    p50, p99 = np.percentile(seconds[-scale.calls :], (50, 99)) * 1e3
    return {"p50 ms": float(p50), "p99 ms": float(p99), "calls": len(seconds[-scale.calls :])}
