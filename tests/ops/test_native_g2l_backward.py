"""The gradient of the native g2l_scores against the reference's in fp64, at every level that this machine has."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import LayerNormWeights, native
from native_levels import randn, train

pytestmark = pytest.mark.skipif(bool(native.MISSING), reason="the native extension is not built")

NAMES = ("query", "key", "value", "gate", "weight", "bias")
MASKS = ("query_mask", "key_mask")


def operands(e: int, le: int, m: int, lm: int, d: int, scale: float = 1.0) -> list[Tensor]:
    """query, key, value, gate, norm weight, norm bias."""
    parts = [(e, le, d), (m, lm, d), (m, lm, d), (e, d), (d,), (d,)]
    tensors = [randn(*shape, seed=seed) for seed, shape in enumerate(parts)]
    tensors[0] *= scale
    tensors[4] = 1 + 0.2 * tensors[4]
    return tensors


def masks_of(e: int, le: int, m: int, lm: int) -> list[Tensor]:
    masks = [randn(e, le, seed=5) > 0, randn(m, lm, seed=6) > 0]
    for mask in masks:
        mask[:, -1] = True
        mask[0, :-1] = False
    return masks


def scores(tensors: list[Tensor], masks: list[Tensor] | None, backend: str, precision: str = "fp32") -> Tensor:
    *sides, weight, bias = tensors
    named = dict(zip(MASKS, masks or [None, None], strict=True))
    norm = LayerNormWeights(weight, bias)
    return ops.g2l_scores(*sides, norm, **named, precision=precision, backend=backend)  # type: ignore[arg-type]


def gradients(
    tensors: list[Tensor], masks: list[Tensor] | None, upstream: Tensor, backend: str, precision: str = "fp32"
) -> tuple[Tensor, ...]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(scores(leaves, masks, backend, precision), leaves, upstream.to(leaves[1].dtype))


def exact_gradients(tensors: list[Tensor], masks: list[Tensor] | None, upstream: Tensor) -> tuple[Tensor, ...]:
    return gradients([t.double() for t in tensors], masks, upstream, "reference")


def close(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], share: float) -> None:
    """Each gradient within ``share`` of its own norm, and no value off by more than 30 times that share."""
    for name, a, b in zip(NAMES, found, exact, strict=True):
        assert a.shape == b.shape, name
        error, size = (a.double() - b).flatten(), max(1e-5, float(b.norm()))
        assert float(error.norm()) <= share * size, name
        assert float(error.abs().max()) <= 30 * share * size / math.sqrt(b.numel()), name


# Largest found: fp32 1e-6 of the gradient's norm. bf16 products: 1e-2 where few terms make a gradient, 4e-3 at the
# papers' sizes; each operand is off by up to 2^-9, and so is a weight of the attention by its logit's error.
FP32, BF16 = 3e-6, 2e-2

SIZES = [
    (1, 1, 1, 1, 1),
    (1, 40, 1, 40, 96),
    (3, 2, 2, 3, 5),
    (17, 7, 5, 11, 13),
    (16, 5, 3, 5, 32),
    (33, 6, 4, 65, 7),
    (19, 50, 18, 50, 96),
    (4, 11, 37, 9, 53),
    (1100, 2, 70, 2, 3),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masks"])
def test_gradients(level: str, size: tuple[int, ...], precision: str, masked: bool) -> None:
    e, le, m, lm, _ = size
    tensors, upstream = operands(*size), randn(m, e, seed=7)
    masks = masks_of(e, le, m, lm) if masked else None
    exact = exact_gradients(tensors, masks, upstream)
    close(gradients(tensors, masks, upstream, "native", precision), exact, FP32 if precision == "fp32" else BF16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_mask_leaves_out_has_no_gradient_and_no_influence(level: str, precision: str) -> None:
    e, le, m, lm, d = 18, 6, 5, 7, 20
    tensors, masks, upstream = operands(e, le, m, lm, d), masks_of(e, le, m, lm), randn(m, e, seed=7)
    found = gradients(tensors, masks, upstream, "native", precision)
    assert found[0][~masks[0]].eq(0).all()
    assert found[1][~masks[1]].eq(0).all()
    assert found[2][~masks[1]].eq(0).all()
    other = [t.clone() for t in tensors]
    other[0][~masks[0]] *= -3
    for t in other[1:3]:
        t[~masks[1]] = 1e6
    for a, b in zip(gradients(other, masks, upstream, "native", precision), found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 300.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_extreme_logits(level: str, scale: float, precision: str) -> None:
    tensors, upstream = operands(5, 4, 3, 6, 16, scale), randn(3, 5, seed=7)
    found = gradients(tensors, None, upstream, "native", precision)
    assert all(g.isfinite().all() for g in found)
    if scale < 1:
        close(found, exact_gradients(tensors, None, upstream), FP32 if precision == "fp32" else BF16)
    elif precision == "fp32":
        # one weight is nearly 1 and a logit of 1e3 rounds by 1e-4: what is left of its gradient is off by as much
        close(found, exact_gradients(tensors, None, upstream), 1e-3)


def test_no_variance(level: str) -> None:
    tensors, upstream = operands(5, 4, 3, 6, 16), randn(3, 5, seed=7)
    tensors[2] = torch.ones_like(tensors[2])
    close(gradients(tensors, None, upstream, "native"), exact_gradients(tensors, None, upstream), 1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_do_not_depend_on_the_threads(level: str, precision: str) -> None:
    tensors, upstream = operands(150, 3, 70, 4, 8), randn(70, 150, seed=7)
    expected = gradients(tensors, None, upstream, "native", precision)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for a, b in zip(gradients(tensors, None, upstream, "native", precision), expected, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_gradient_of_bf16_query_and_gate(level: str) -> None:
    tensors, upstream = operands(17, 5, 3, 6, 24), randn(3, 17, seed=7)
    tensors[0], tensors[3] = tensors[0].bfloat16(), tensors[3].bfloat16()
    found = gradients(tensors, None, upstream, "native")
    assert found[0].dtype == found[3].dtype == torch.bfloat16
    exact = exact_gradients(tensors, None, upstream)
    close(tuple(g.float() for g in found), exact, 4e-3)  # a gradient in bf16 is off by up to 2^-9


def test_gradcheck(level: str) -> None:
    """Central differences of fp32 scores, whose rounding (1e-6) over the step leaves 1e-4."""
    tensors = [t.requires_grad_() for t in operands(5, 3, 4, 6, 7, 0.5)]
    with pytest.warns(UserWarning, match="not a double precision"):
        assert torch.autograd.gradcheck(
            lambda *x: scores(list(x), None, "native"), tensors, eps=1e-2, atol=5e-3, rtol=1e-2
        )


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    tensors = operands(3, 4, 2, 5, 6)
    tensors[1].requires_grad_()
    scores(tensors, None, "native").sum().backward()  # an expanded gradient arrives
    assert [t.grad is not None for t in tensors] == [i == 1 for i in range(6)]
    exact = exact_gradients(tensors, None, torch.ones(2, 3))[1]
    torch.testing.assert_close(tensors[1].grad, exact.float(), rtol=1e-4, atol=1e-6)


def test_strided_operands_and_gradient() -> None:
    tensors, upstream = operands(6, 4, 5, 3, 8), randn(6, 5, seed=7).T
    tensors[0] = randn(4, 6, 9, seed=8).transpose(0, 1)[..., 1:]
    close(gradients(tensors, None, upstream, "native"), exact_gradients(tensors, None, upstream), FP32)


def test_refusals() -> None:
    query, key, value, gate, weight, bias = (t.requires_grad_() for t in operands(3, 2, 2, 4, 8))
    sides, norm, rows = (query, key, value, gate), LayerNormWeights(weight, bias), torch.tensor([2, 0])
    with pytest.raises(ValueError, match="backend 'native': the kernel has no gradient"):
        ops.g2l_scores(*sides, norm, rows=rows, backend="native")
    with pytest.raises(ValueError, match="backend 'native': the kernel has no gradient"):
        ops.g2l_pairs(*sides, norm, rows % 2, rows, backend="native")
    op = torch.ops.m3el_fast.g2l_scores
    with pytest.raises(NotImplementedError, match="no gradient with rows"):
        op(*sides, weight, bias, 1e-5, None, None, rows, False)
    (found,) = torch.autograd.grad(scores([*sides, weight, bias], None, "native").sum(), [query], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        found.sum().backward()
    plain = [t.detach() for t in (*sides, weight, bias)]
    with pytest.raises(RuntimeError, match="gradient: expected one of every mention and entity"):
        torch.ops.m3el_fast.g2l_backward(torch.ones(3, 2), *plain, 1e-5, None, None, False)


PEAK = """
import resource, torch
from m3el_fast import ops
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def step(b):
    x, y, gate = torch.randn(b, 40, 8, requires_grad=True), torch.randn(b, 40, 8, requires_grad=True), torch.randn(b, 8)
    norm = ops.LayerNormWeights(torch.ones(8), torch.zeros(8))
    ops.g2l_scores(x, y, y, gate, norm, backend="native").sum().backward()
step(8)
before = peak()
step(256)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_pairs() -> None:
    """The attention of 256 x 256 pairs is 420 MB; the step needs 20 tensors of the operands' size, 0.7 MB."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30_000  # KB


def test_rows_fall_back_to_the_reference() -> None:
    tensors = [t.requires_grad_() for t in operands(3, 2, 2, 4, 8)]
    norm, rows = LayerNormWeights(tensors[4], tensors[5]), torch.tensor([2, 0, 2])
    found = torch.autograd.grad(ops.g2l_scores(*tensors[:4], norm, rows=rows).sum(), tensors)
    whole = scores(tensors, None, "native")
    for a, b in zip(found, torch.autograd.grad(whole[:, rows].sum(), tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masks"])
def test_opcheck(bf16: bool, masked: bool) -> None:
    masks = masks_of(5, 3, 4, 2) if masked else [None, None]
    plain = operands(5, 3, 4, 2, 8)
    torch.library.opcheck(torch.ops.m3el_fast.g2l_backward.default, (randn(4, 5), *plain, 1e-5, *masks, bf16))
    leaves = [t.requires_grad_() for t in plain]
    torch.library.opcheck(torch.ops.m3el_fast.g2l_scores.default, (*leaves, 1e-5, *masks, None, bf16))


class TinyMatcher(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value, self.gate = (torch.nn.Linear(12, 8) for _ in range(4))
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, entity: Tensor, mention: Tensor, backend: str) -> Tensor:
        norm = LayerNormWeights(self.norm.weight, self.norm.bias)
        sides = self.query(entity), self.key(mention), self.value(mention), self.gate(entity.mean(dim=1))
        table = ops.g2l_scores(*sides, norm, backend=backend)  # type: ignore[arg-type]
        return torch.nn.functional.cross_entropy(table, torch.arange(len(table)))


def trained(backend: str, compiled: bool = False) -> list[float]:
    model = TinyMatcher()
    step = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    entity = randn(20, 6, 12, seed=1)
    mention = entity[:, :5] + randn(20, 5, 12, seed=2, scale=0.3)
    return train(lambda: step(entity, mention, backend), optimizer)


def test_training_repeats_the_reference(level: str) -> None:
    found, expected = trained("native"), trained("reference")
    assert expected[-1] < 0.3 * expected[0]
    assert found == pytest.approx(expected, rel=1e-3)


def test_compiled_training_without_a_graph_break() -> None:
    assert trained("auto", compiled=True) == pytest.approx(trained("native"), rel=1e-5)
