"""All-KB exact ranking: every mention's gold against every entity, through the Scorer.

Peers first (timed on a slice, compared per pair); then M3EL and MIMIC at every instruction set of the machine.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.limits import pair_work, seconds_per_pair
from bench.machine import isa_levels
from bench.measure import Measure
from bench.scales import Scale, mentions_at
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
    case, environment = PEERS[peer]
    options = {"kind": "m3el", "mentions": scale.peer_mentions, "entities": scale.peer_entities}
    with Worker(f"bench.cases.all_kb:{case}", options, environment) as worker:
        worker.call("verify")
        best = worker.call("sweep")
        measure.time(lambda: worker.call("run"), scale.rounds)
        items = scale.peer_mentions * scale.peer_entities
        measure.record(peer, items=items, unit="pairs", peak=worker.call("peak"), best=best)


@pytest.mark.parametrize("level", isa_levels()[::-1])
@pytest.mark.parametrize("kind", ["m3el", "mimic"])
def test_ranking(
    kind: str,
    level: str,
    measure: Measure,
    scale: Scale,
    index: Callable[[str, int], str],
    matmul_rates: tuple[float, float],
) -> None:
    mentions = mentions_at(scale, level, BEST)
    options = {"kind": kind, "index": index(kind, scale.entities), "mentions": mentions}
    environment = {} if level == "reference" else {"M3EL_CPU_ISA": level}
    with Worker("bench.cases.all_kb:AllKB", options, environment) as worker:
        worker.call("verify", level)
        measure.time(lambda: worker.call("run"), 1 if level == "scalar" else scale.rounds)
        peak, report = worker.call("peak"), worker.call("report")
    wide = any(name.startswith(("avx512", "amx")) for name in isa_levels())
    limit = None
    if level not in ("scalar", "reference"):
        limit = seconds_per_pair(pair_work(kind, report["images_per_entity"]), level, *matmul_rates, wide)
    measure.record(
        f"ranking, {kind}, {level}",
        items=mentions * scale.entities,
        unit="pairs",
        peers=tuple(PEERS) if kind == "m3el" else (),
        bars=BARS.get((kind, level)),
        limit=limit,
        peak=peak,
        mentions=mentions,
        entities=scale.entities,
        **report,
    )
