"""Two-stage linking: candidates by the coarse score, then the exact best ten of these, and the recall that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bench.cases.two_stage import CANDIDATES
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import Worker

EXHAUSTIVE = "best ten, exhaustive scan"


@pytest.fixture(scope="module")
def worker(scale: Scale, index: Callable[[str, int], str]) -> Iterator[Worker]:
    options = {"index": index("m3el", scale.entities), "mentions": scale.rerank_mentions}
    with Worker("bench.cases.two_stage:TwoStage", options) as worker:
        worker.call("verify")
        yield worker


@pytest.mark.parametrize("candidates", [None, *CANDIDATES])
def test_two_stage(candidates: int | None, worker: Worker, measure: Measure, scale: Scale) -> None:
    measure.time(lambda: worker.call("run", candidates), scale.rounds)
    one, ten = worker.call("recall")
    if candidates is None or candidates >= scale.entities:
        assert (one, ten) == (1.0, 1.0)
    name = EXHAUSTIVE if candidates is None else f"best ten in two stages, {candidates} candidates"
    measure.record(
        name,
        items=scale.rerank_mentions * scale.entities,
        unit="pairs",
        peers=() if candidates is None else (EXHAUSTIVE,),
        peak=worker.call("peak", candidates),
        entities=scale.entities,
        **{"recall of the best": one, "recall of the best ten": ten},
    )
