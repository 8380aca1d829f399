"""Two-stage linking: candidates by the coarse score, then the exact best ten of these, and the recall that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bench.cases.two_stage import CANDIDATES
from bench.limits import COARSE, coarse_bytes, entity_bytes, pair_work
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import Worker

EXHAUSTIVE = "best ten, exhaustive scan"


@pytest.fixture(scope="module")
def worker(scale: Scale, index: Callable[[str, int], str], expected: Callable[[str, int], str]) -> Iterator[Worker]:
    files = {"index": index("m3el", scale.entities), "expected": expected("m3el", scale.entities)}
    options = {"mentions": scale.rerank_mentions, **files}
    with Worker("bench.cases.two_stage:TwoStage", options) as worker:
        worker.call("verify")
        yield worker


@pytest.mark.parametrize("candidates", [None, *CANDIDATES])
def test_two_stage(candidates: int | None, worker: Worker, measure: Measure, scale: Scale) -> None:
    peak = worker.call("peak", candidates)  # its run is the warm-up
    measure.time(lambda: worker.call("run", candidates), scale.rounds, warm=False)
    one, ten = worker.call("recall", candidates)
    if candidates is None or candidates >= scale.entities:
        assert (one, ten) == (1.0, 1.0)
    share = worker.call("images_per_entity")
    flop, moved = pair_work("m3el", share).flop, entity_bytes("m3el", share)
    if candidates is not None:  # the coarse score of every entity, and candidates of each mention's own
        chosen = min(candidates, scale.entities) / scale.entities
        flop = 2.0 * COARSE + chosen * (pair_work("m3el", 1.0).flop - 2.0 * COARSE)
        moved = coarse_bytes(share) + chosen * scale.rerank_mentions * (entity_bytes("m3el", 1.0) - coarse_bytes(1.0))
    name = EXHAUSTIVE if candidates is None else f"best ten in two stages, {candidates} candidates"
    measure.record(
        name,
        items=scale.rerank_mentions * scale.entities,
        unit="pairs",
        peers=() if candidates is None else (EXHAUSTIVE,),
        peak=peak,
        flop=flop,
        moved=moved / scale.rerank_mentions,
        entities=scale.entities,
        ours=True,
        **{"recall of the best": one, "recall of the best ten": ten},
    )
