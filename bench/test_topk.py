"""``topk`` of a block of scores, against ``torch.topk``."""

from __future__ import annotations

import pytest
import torch

from bench.measure import Measure
from bench.scales import Scale
from m3el_fast import ops

ROWS, K = 64, 10
TORCH = "torch.topk"


@pytest.fixture(scope="module")
def scores(scale: Scale) -> torch.Tensor:
    """[64, entities], all values of a row different."""
    g = torch.Generator().manual_seed(5)
    return torch.stack([torch.randperm(scale.entities, generator=g).float() for _ in range(ROWS)])


def test_peer(scores: torch.Tensor, measure: Measure, scale: Scale) -> None:
    measure.time(lambda: scores.topk(K, dim=1), scale.short_rounds)
    measure.record(TORCH, items=scores.numel(), unit="scores")


def test_topk(scores: torch.Tensor, measure: Measure, scale: Scale, read_bandwidth: float) -> None:
    values, rows = ops.topk(scores, K)
    expected = scores.topk(K, dim=1)
    assert torch.equal(values, expected.values) and torch.equal(rows, expected.indices)
    measure.time(lambda: ops.topk(scores, K), scale.short_rounds)
    measure.record("topk", items=scores.numel(), unit="scores", peers=(TORCH,), limit=4 / read_bandwidth)
