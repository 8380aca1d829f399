"""Two-stage linking's second stage: ``rerank_topk`` on each mention's own candidates, gathered from an index."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.limits import pair_work
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import TUNED_MALLOC, Worker

EAGER = "rerank, eager gather + matmul"


WORK = pair_work("m3el", 1.0)  # a candidate's image is its own


@pytest.fixture(scope="module")
def options(scale: Scale, index: Callable[[str, int], str], expected: Callable[[str, int], str]) -> dict[str, object]:
    files = {"index": index("m3el", scale.entities), "expected": expected("m3el", scale.entities)}
    return {"mentions": scale.rerank_mentions, "candidates": scale.candidates, **files}


def test_peer(measure: Measure, scale: Scale, options: dict[str, object]) -> None:
    with Worker("bench.cases.rerank:EagerRerank", options, TUNED_MALLOC) as worker:
        worker.call("verify")
        read = worker.call("bytes_read")  # as an index stores it
        best, peak = worker.call("sweep"), worker.call("peak")  # the peak's run is the warm-up
        measure.time(lambda: worker.call("run"), scale.rounds, warm=False)
    items = scale.rerank_mentions * scale.candidates
    measure.record(EAGER, items=items, unit="pairs", peak=peak, flop=WORK.flop, moved=read / items, best=best)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rerank(
    precision: str, measure: Measure, scale: Scale, options: dict[str, object], read_bandwidth: float
) -> None:
    """The bar is 12 x the peer, or 60% of the read bandwidth (which is the limit here)."""
    with Worker("bench.cases.rerank:Rerank", options | {"precision": precision}) as worker:
        worker.call("verify")
        measure.time(lambda: worker.call("run"), scale.short_rounds)
        peak, read = worker.call("peak"), worker.call("bytes_read")
    items = scale.rerank_mentions * scale.candidates
    measure.record(
        f"rerank, {precision}",
        items=items,
        unit="pairs",
        peers=(EAGER,),
        bars={EAGER: 12.0, "share of limit": 0.6},
        limit=read / items / read_bandwidth,
        peak=peak,
        flop=WORK.flop,
        moved=read / items,
        read_GB=read / 1e9,
        bandwidth_GB_s=read_bandwidth / 1e9,
    )
