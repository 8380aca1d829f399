"""Other libraries' forms of single stages, on the CPU; each is skipped where it is not installed (``.[bench]``).

* The coarse stage: the 100 best of the KB by inner products of 800, FAISS's flat index against ``ops.inner_scores`` +
  ``ops.topk_merge`` in a scan's blocks; and FAISS's heaps on given scores against ``ops.topk``.
* Late interaction: maxsim-cpu's MaxSim against ``ops.g2l_scores``, which does a softmax, a mean of values, a LayerNorm
  and a gate more.
* The call itself, models of no size: sentence-transformers' ``CrossEncoder.predict`` against ``Scorer.topk``,
  ``Linker.link`` and ``M3ELCrossEncoder.predict`` on the same number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from bench.cases.interface import ADAPTER, CROSS_ENCODER
from bench.cases.libraries import FAISS, FAISS_HEAPS, MAXSIM, Libraries
from bench.cases.ops import COARSE
from bench.features import DV, LT
from bench.limits import g2l_bytes, g2l_work
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import Worker

PEERS = (FAISS, FAISS_HEAPS, MAXSIM, CROSS_ENCODER)
MODULES = {  # form -> the module that it needs, its package
    FAISS: ("faiss", "faiss-cpu"),
    FAISS_HEAPS: ("faiss", "faiss-cpu"),
    MAXSIM: ("maxsim_cpu", "maxsim-cpu"),
    CROSS_ENCODER: ("sentence_transformers", "sentence-transformers"),
    ADAPTER: ("sentence_transformers", "sentence-transformers"),
}
CASES = [(name, form) for name, one in Libraries.COMPUTATIONS.items() for form in one.FORMS]


@pytest.fixture(scope="module")
def worker(scale: Scale) -> Iterator[Worker]:
    few = max(1, scale.peer_entities // 2)
    all_kb = {"mentions": scale.peer_mentions, "entities": scale.entities}
    candidates = {"entities": scale.candidates, "candidates": max(10, scale.candidates // 10)}
    sizes = {
        "coarse stage, top 100": all_kb,
        "top 10 of scores": all_kb,
        "late interaction, 40 x 40 tokens": {"mentions": scale.peer_mentions, "entities": few},
        "interface": {"mentions": scale.rerank_mentions, **candidates},
    }
    environment = {"RAYON_NUM_THREADS": str(torch.get_num_threads())}  # maxsim-cpu's threads
    with Worker("bench.cases.libraries:Libraries", {"sizes": sizes}, environment) as worker:
        yield worker


@pytest.mark.parametrize(("name", "form"), CASES)
def test_library(
    name: str,
    form: str,
    worker: Worker,
    measure: Measure,
    scale: Scale,
    matmul_rates: tuple[float, float],
    read_bandwidth: float,
) -> None:
    if form in MODULES and find_spec(MODULES[form][0]) is None:
        pytest.skip(f"{MODULES[form][1]} is not installed: pip install -e '.[bench]'")
    verified = worker.call("verify", name, form)
    measure.time(lambda: worker.call("run"), scale.short_rounds)
    limits = {  # least seconds per item; that of late interaction is in test_ops.py
        "coarse stage, top 100": max(
            2.0 * COARSE / matmul_rates[0], 4.0 * COARSE / scale.peer_mentions / read_bandwidth
        ),
        "top 10 of scores": 4 / read_bandwidth,
    }
    counted = {  # FLOP and bytes per item; MaxSim has the products alone, and a maximum is no FLOP
        "coarse stage, top 100": (2.0 * COARSE, 4.0 * COARSE / scale.peer_mentions),
        "late interaction, 40 x 40 tokens": (
            g2l_work(LT, LT, DV).tile if form == MAXSIM else g2l_work(LT, LT, DV).flop,
            g2l_bytes(LT, DV, scale.peer_mentions, max(1, scale.peer_entities // 2)),
        ),
    }
    flop, moved = counted.get(name, (None, None))
    measure.record(
        f"{name}, {form}",
        unit=Libraries.COMPUTATIONS[name].unit,
        peers=() if form in PEERS else tuple(f"{name}, {peer}" for peer in PEERS),
        limit=None if form in PEERS else limits.get(name),
        peak=worker.call("peak"),
        flop=flop,
        moved=moved,
        **verified,
    )
