"""Sizes that only a GPU can run: offsets beyond 2^31, batches whose matrices would not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import LayerNormWeights

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda", dtype=dtype)


def norm(d: int) -> LayerNormWeights:
    return LayerNormWeights(torch.ones(d, device="cuda"), torch.zeros(d, device="cuda"))


def test_icl_of_65536() -> None:
    """Loss and gradient equal those of slices of anchors in fp64, without a B x B matrix."""
    batch, d, step = 1 << 16, 64, 1 << 9
    sides = [drawn(batch, d, seed=s).requires_grad_() for s in (0, 1)]
    exact = [x.detach().double().requires_grad_() for x in sides]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = ops.icl_loss(*sides, backend="triton")
    loss.backward()
    assert torch.cuda.max_memory_allocated() - before < batch * batch / 8  # a bit a pair is far more than O(B d)
    wanted = 0.0
    for first in range(0, batch, step):
        part = ops.icl_loss(*exact, anchors=range(first, first + step), backend="reference") * (step / batch)
        part.backward()
        wanted += part.item()
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    for found, side in zip(sides, exact, strict=True):
        assert float((found.grad - side.grad).norm() / side.grad.norm()) < 1e-4


def test_a_query_of_more_than_2_to_31_values() -> None:
    entities, rows, d = 600_000, 40, 96
    query = torch.empty(entities, rows, d, device="cuda", dtype=torch.bfloat16)
    query[:2], query[-70:] = drawn(2, rows, d, seed=0), drawn(70, rows, d, seed=1)
    gate = drawn(entities, d, seed=2)
    key, value = drawn(5, 40, d, seed=3), drawn(5, 40, d, seed=4)
    scores = ops.g2l_scores(query, key, value, gate, norm(d), precision="bf16", backend="triton")
    for some in (slice(0, 2), slice(-70, None)):
        alone = ops.g2l_scores(query[some], key, value, gate[some], norm(d), precision="bf16", backend="triton")
        torch.testing.assert_close(scores[:, some], alone)
        exact = [t.double() for t in (query[some], key, value, gate[some])]
        wanted = ops.g2l_scores(*exact, LayerNormWeights(*(t.double() for t in norm(d)[:2])), backend="reference")
        torch.testing.assert_close(alone.double(), wanted, rtol=0, atol=0.04 * float(wanted.std()))


def test_scores_of_more_than_2_to_31_pairs() -> None:
    entities, mentions, d = 70_000, 40_000, 16
    query, gate = drawn(entities, 1, d, seed=0), drawn(entities, d, seed=1)
    key, value = drawn(mentions, 1, d, seed=2), drawn(mentions, 1, d, seed=3)
    scores = ops.g2l_scores(query, key, value, gate, norm(d), backend="triton")
    for m in (slice(0, 3), slice(-3, None)):
        wanted = ops.g2l_scores(query, key[m], value[m], gate, norm(d), backend="reference")
        torch.testing.assert_close(scores[m], wanted, rtol=1e-4, atol=1e-3)


def test_in_batch_training_of_4096() -> None:
    """Forward and backward at a size whose attention weights alone are 54 GB in bf16."""
    batch, rows, d = 4096, 40, 96
    shapes = ((batch, rows, d), (batch, rows, d), (batch, rows, d), (batch, d))
    operands = [drawn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.g2l_scores(*operands, norm(d), precision="bf16", backend="triton").logsumexp(dim=1).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 2 << 30
    assert all(x.grad is not None and x.grad.isfinite().all() for x in operands)
