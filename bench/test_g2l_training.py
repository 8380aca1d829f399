"""Training: forward and backward of in-batch ``g2l_scores``, text and image, against the released form."""

from __future__ import annotations

import pytest

from bench.features import DV, LT, LV
from bench.limits import g2l_work
from bench.measure import Measure
from bench.scales import Scale
from bench.worker import TUNED_MALLOC, Worker

TUNED, DEFAULT = "training, eager, tuned malloc", "training, eager, default malloc"
CASES = {  # name -> form, environment, bars
    TUNED: ("eager", TUNED_MALLOC, {}),
    DEFAULT: ("eager", {}, {}),
    "training, fp32": ("fp32", {}, {TUNED: 4.0}),
    "training, bf16": ("bf16", {}, {TUNED: 8.0}),
}


@pytest.fixture(scope="module")
def peaks() -> dict[str, int]:
    return {}


@pytest.mark.parametrize("name", CASES)
def test_training(name: str, measure: Measure, scale: Scale, peaks: dict[str, int]) -> None:
    form, environment, bars = CASES[name]
    with Worker("bench.cases.training:Training", {"batch": scale.batch, "form": form}, environment) as worker:
        error, peaks[name] = worker.call("verify"), worker.call("peak")  # the peak's run is the warm-up
        measure.time(lambda: worker.call("run"), scale.rounds if form == "eager" else scale.short_rounds, warm=False)
    bars = bars | ({"peak MB": peaks[TUNED] / 1e7} if bars and TUNED in peaks else {})
    measure.record(
        name,
        items=1,
        unit="steps",
        peers=(TUNED, DEFAULT) if bars else (),
        bars=bars,
        peak=peaks[name],
        # backward has two products for each one forward; tokens' and items' vectors and their gradients in fp32
        flop=3 * scale.batch**2 * sum(g2l_work(length, length, DV).flop for length in (LT, LV)),
        moved=2 * 4 * scale.batch * sum((3 * length + 1) * DV for length in (LT, LV)),
        gradient_error=error,
        batch=scale.batch,
    )
