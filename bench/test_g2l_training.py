"""Training: forward and backward of in-batch ``g2l_scores``, text and image, against the released form."""

from __future__ import annotations

import pytest

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
        error = worker.call("verify")
        measure.time(lambda: worker.call("run"), scale.short_rounds)
        peaks[name] = worker.call("peak")
    bars = bars | ({"peak MB": peaks[TUNED] / 1e7} if bars and TUNED in peaks else {})
    measure.record(
        name,
        items=1,
        unit="steps",
        peers=(TUNED, DEFAULT) if bars else (),
        bars=bars,
        peak=peaks[name],
        gradient_error=error,
        batch=scale.batch,
    )
