"""Single ops on the CPU, forward or forward + backward, against the same computation in PyTorch.

Rates are per pair (g2l, dual and inner scores), per anchor (the loss) and per context. Chunked peers run at their best
chunk; the compiled one of g2l at the first of these.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.cases.ops import COARSE, COMPILED, MATMUL, PAPER, SECTION5, Ops
from bench.features import DT, DV, LT, LV
from bench.limits import Work, g2l_bytes, g2l_work, seconds_per_pair
from bench.machine import isa_levels
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import TUNED_MALLOC, Worker

PEERS = (PAPER, SECTION5, COMPILED, MATMUL)
CASES = [(name, form) for name, one in Ops.COMPUTATIONS.items() for form in one.FORMS]
BF16_LEVELS = ("amx", "avx512bf16")  # whose tile products are of bf16; with fp32 products they are AVX-512's


@pytest.fixture(scope="module")
def options(scale: Scale) -> dict[str, object]:
    few = {"mentions": scale.peer_mentions, "slice_entities": max(1, scale.peer_entities // 5)}
    sizes = {
        "icl_loss forward + backward": {"batch": scale.loss_batch},
        "icl_loss forward + backward, a training batch": {"batch": scale.batch},
        "g2l_scores, text": few | {"entities": scale.peer_entities},
        "cross_modal_context": {"contexts": scale.contexts},
        "cross_modal_context forward + backward": {"contexts": scale.loss_batch},
        "dual_scores": few | {"entities": scale.entities},
        "inner_scores": {"mentions": scale.peer_mentions, "entities": scale.entities},
    }
    return {"sizes": sizes}


@pytest.fixture(scope="module")
def own(options: dict[str, object]) -> Iterator[Worker]:
    with Worker("bench.cases.ops:Ops", options) as worker:
        yield worker


@pytest.fixture(scope="module")
def tuned(options: dict[str, object]) -> Iterator[Worker]:
    """For peers, which allocate much more."""
    with Worker("bench.cases.ops:Ops", options, TUNED_MALLOC) as worker:
        yield worker


@pytest.mark.parametrize(("name", "form"), CASES)
def test_op(
    name: str,
    form: str,
    own: Worker,
    tuned: Worker,
    measure: Measure,
    scale: Scale,
    matmul_rates: tuple[float, float],
    read_bandwidth: float,
    request: pytest.FixtureRequest,
) -> None:
    worker = tuned if form in PEERS else own
    if form == COMPILED:
        if not request.config.getoption("run_benchmarks"):
            pytest.skip("torch.compile takes up to ten seconds: only with --benchmark")
        verified = worker.call("verify_compiled", name)
    else:
        verified = worker.call("verify", name, form)
    if "skip" in verified:
        pytest.skip(verified["skip"])
    measure.time(lambda: worker.call("run"), scale.rounds if form == PAPER else scale.short_rounds)
    work, read, written = counted(name, scale)
    measure.record(
        f"{name}, {form}",
        unit=Ops.COMPUTATIONS[name].unit,
        peers=() if form in PEERS else tuple(f"{name}, {peer}" for peer in PEERS),
        limit=None if form in PEERS else limit(work, read, form, matmul_rates, read_bandwidth),
        peak=worker.call("peak"),
        flop=work.flop,
        moved=read + written,
        **verified,
    )


def counted(name: str, scale: Scale) -> tuple[Work, float, float]:
    """What an item needs: arithmetic, and bytes read and written once."""
    mentions = scale.peer_mentions
    return {
        "icl_loss forward + backward": _loss(scale.loss_batch),
        "icl_loss forward + backward, a training batch": _loss(scale.batch),
        "g2l_scores, text": (g2l_work(LT, LT, DV), g2l_bytes(LT, DV, mentions, scale.peer_entities), 0.0),
        "cross_modal_context": (Work(0.0, 0.0, 2.0 * DV * (3 * DV + 2 * LV)), 4.0 * DV * (LV + 1), 4.0 * DV),
        # backward: three products with weights, three for them; of local two and of its gradient two
        "cross_modal_context forward + backward": (
            Work(0.0, 0.0, 2.0 * DV * (9 * DV + 6 * LV)),
            4.0 * DV * (2 * LV + 2),
            4.0 * DV * (LV + 2),
        ),
        "dual_scores": (Work(0.0, 0.0, 10.0 * DV), 4.0 * (3 * DV + 7) / mentions, 4.0),
        "inner_scores": (Work(0.0, 0.0, 2.0 * COARSE), 4.0 * COARSE / mentions, 4.0),
    }[name]


def _loss(batch: int) -> tuple[Work, float, float]:
    """Of an anchor in a batch: six B x B x d products. All rows of both sides with one another, each pair once, are
    two, and the gradient of each of these pairs goes to two rows."""
    return Work(12.0 * batch * DT, 4.0 * batch, 0.0), 8.0 * DT, 8.0 * DT


def limit(work: Work, read: float, form: str, rates: tuple[float, float], bandwidth: float) -> float:
    """Least seconds per item: by products and exponentials (``limits.py``), or by the bytes that are read once."""
    level = isa_levels()[-1]
    if form != "bf16" and level in BF16_LEVELS:
        level = "avx512"
    wide = any(one.startswith(("avx512", "amx")) for one in isa_levels())
    return max(seconds_per_pair(work, level, *rates, wide), read / bandwidth)
