"""The evaluation of the released code with one line changed: ``compat.rank_all`` in place of its loop over chunks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.cases.drop_in import LOOP, RankAll
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import TUNED_MALLOC, Worker

NAME = "released evaluation"


@pytest.fixture(scope="module")
def workers(scale: Scale) -> Iterator[dict[bool, Worker]]:
    """By whether it is the peer's, whose malloc is tuned: it allocates much more."""
    sizes = {NAME: {"mentions": scale.peer_mentions, "entities": scale.peer_entities}}
    with (
        Worker("bench.cases.drop_in:DropIn", {"sizes": sizes}) as own,
        Worker("bench.cases.drop_in:DropIn", {"sizes": sizes}, TUNED_MALLOC) as tuned,
    ):
        yield {False: own, True: tuned}


@pytest.mark.parametrize("form", RankAll.FORMS)
def test_rank_all(form: str, workers: dict[bool, Worker], measure: Measure, scale: Scale) -> None:
    is_peer = form == LOOP
    worker = workers[is_peer]
    verified = worker.call("verify", NAME, form)
    measure.time(lambda: worker.call("run"), scale.rounds)
    measure.record(
        f"{NAME}, {form}",
        unit=RankAll.unit,
        peers=() if is_peer else (f"{NAME}, {LOOP}",),
        peak=worker.call("peak"),
        **verified,
    )
