"""``topk`` of blocks of scores, against ``torch.topk``, which need not keep ties in order."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from bench.measure import Measure
from bench.memory import peak_memory
from bench.scales import Scale
from m3el_fast import ops


@pytest.fixture(scope="module", params=range(3))
def selection(request: pytest.FixtureRequest, scale: Scale) -> tuple[Tensor, int]:
    """Scores [M, N], and k."""
    rows, columns, k = scale.selections[request.param]
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)), k


def test_peer(selection: tuple[Tensor, int], measure: Measure, scale: Scale) -> None:
    scores, k = selection
    call = partial(scores.topk, k, dim=1)
    measure.time(call, scale.short_rounds)
    measure.record(f"torch.{_name(scores, k)}", items=scores.numel(), unit="scores", peak=peak_memory(call))


def test_topk(selection: tuple[Tensor, int], measure: Measure, scale: Scale, read_bandwidth: float) -> None:
    scores, k = selection
    call = partial(ops.topk, scores, k)
    values, ids = call()
    assert torch.equal(values, scores.topk(k, dim=1).values)
    assert torch.equal(scores.gather(1, ids), values)
    measure.time(call, scale.short_rounds)
    name = _name(scores, k)
    measure.record(
        name,
        items=scores.numel(),
        unit="scores",
        peers=(f"torch.{name}",),
        limit=4 / read_bandwidth,
        peak=peak_memory(call),
    )


def _name(scores: Tensor, k: int) -> str:
    return f"topk of {scores.shape[0]} x {scores.shape[1]:,}, k = {k}"
