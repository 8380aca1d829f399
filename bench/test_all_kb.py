"""All-KB exact ranking: every mention's gold against every entity, through the Scorer.

Peers first (timed on a slice, compared per pair); then M3EL and MIMIC at every instruction set of the machine.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.limits import entity_bytes, pair_work, seconds_per_pair
from bench.machine import isa_levels
from bench.measure import Measure
from bench.scales import LONG, Scale, mentions_at
from bench.worker import TUNED_MALLOC, Worker

TUNED, DEFAULT, REFORMULATED = "released eager, tuned malloc", "released eager, default malloc", "reformulated eager"
BEST = isa_levels()[-1]

PEERS = {  # name -> case, environment
    TUNED: ("ReleasedEager", TUNED_MALLOC),
    DEFAULT: ("ReleasedEager", {}),
    REFORMULATED: ("ReformulatedEager", TUNED_MALLOC),
}
BARS: dict[tuple[str, str], dict[str, float]] = {
    ("m3el", "amx"): {"pairs/s": 2.4e6, TUNED: 50, DEFAULT: 100, REFORMULATED: 10, "peak MB": 600},
    ("m3el", "avx512"): {REFORMULATED: 2.5, "peak MB": 600},
    ("m3el", "avx2"): {REFORMULATED: 1.3, "peak MB": 600},
    ("mimic", "amx"): {"pairs/s": 2.4e6, "peak MB": 600},
}


@pytest.mark.parametrize("peer", PEERS)
def test_peer(peer: str, measure: Measure, scale: Scale) -> None:
    """The work is that of ranking: section 5's, on features as an index stores them."""
    case, environment = PEERS[peer]
    mentions, entities = scale.peer_mentions, scale.peer_entities
    with Worker(
        f"bench.cases.all_kb:{case}", {"kind": "m3el", "mentions": mentions, "entities": entities}, environment
    ) as worker:
        worker.call("verify")
        best = worker.call("sweep")
        peak, report = worker.call("peak"), worker.call("report")  # the peak's run is the warm-up
        measure.time(lambda: worker.call("run"), scale.rounds, warm=False)
    share = report["images_per_entity"]
    measure.record(
        peer,
        items=mentions * entities,
        unit="pairs",
        peak=peak,
        flop=pair_work("m3el", share).flop,
        moved=entity_bytes("m3el", share) / mentions,
        best=best,
        mentions=mentions,
        entities=entities,
    )


@pytest.mark.parametrize("level", isa_levels()[::-1])
@pytest.mark.parametrize("kind", ["m3el", "mimic"])
def test_ranking(
    kind: str,
    level: str,
    measure: Measure,
    scale: Scale,
    index: Callable[[str, int], str],
    expected: Callable[[str, int], str],
    matmul_rates: tuple[float, float],
) -> None:
    mentions = mentions_at(scale, level, BEST)
    files = {"index": index(kind, scale.entities), "expected": expected(kind, scale.entities)}
    options = {"kind": kind, "mentions": mentions, **files}
    rounds = 1 if level == "scalar" or mentions > LONG else scale.rounds
    environment = {} if level == "reference" else {"M3EL_CPU_ISA": level}
    with Worker("bench.cases.all_kb:AllKB", options, environment) as worker:
        worker.call("verify", level)  # warms, too
        measure.time(lambda: worker.call("run"), rounds, warm=False)
        peak, report = worker.call("peak"), worker.call("report")
    wide = any(name.startswith(("avx512", "amx")) for name in isa_levels())
    share, block = report["images_per_entity"], report.pop("block")
    work, limit = pair_work(kind, share), None
    if level not in ("scalar", "reference"):
        limit = seconds_per_pair(work, level, *matmul_rates, wide)
    measure.record(
        f"ranking, {kind}, {level}",
        items=mentions * scale.entities,
        unit="pairs",
        peers=tuple(PEERS) if kind == "m3el" else (),
        bars=BARS.get((kind, level)),
        limit=limit,
        peak=peak,
        flop=work.flop,
        moved=entity_bytes(kind, share) / block,  # every block of mentions reads the index once
        mentions=mentions,
        entities=scale.entities,
        **report,
    )
