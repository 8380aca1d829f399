"""The native cross-modal contexts against the reference in fp64, at every level that this machine has."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import CrossModalWeights, LayerNormWeights, native, native_cross_modal, reference
from native_levels import randn, train

pytestmark = pytest.mark.skipif(bool(native.MISSING), reason="the native extension is not built")

# Largest found: 4e-6, of a gradient that nearly cancels out.
NEAR = 2e-5


class Dropped(torch.autograd.Function):
    """Passes values on, and gives back no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:  # type: ignore[override]
        return None


class Unit(NamedTuple):
    """glob, local and the weights that have a gradient, in the order of CrossModalWeights; the rest."""

    leaves: list[Tensor]
    heads: Tensor
    lam: float = 0.7

    def to(self, dtype: torch.dtype) -> Unit:
        return Unit([t.detach().to(dtype) for t in self.leaves], self.heads.to(dtype), self.lam)

    def context(self, backend: str, leaves: list[Tensor] | None = None) -> Tensor:
        glob, local, u, u_bias, gate, gate_bias, norm, norm_bias, *fusion = self.leaves if leaves is None else leaves
        layer = LayerNormWeights(norm, norm_bias)
        weights = CrossModalWeights(u, u_bias, gate, gate_bias, layer, self.heads, self.lam, *fusion)
        return ops.cross_modal_context(glob, local, weights, backend=backend)  # type: ignore[arg-type]

    def with_gradients(self, backend: str) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in self.leaves]
        out = self.context(backend, leaves)
        upstream = randn(*out.shape, seed=20).to(out.dtype)
        return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def unit(n: int, tokens: int, d: int, heads: int = 5, fused: bool = False) -> Unit:
    shapes = [(n, d), (n, tokens, d), (d, d), (d,), (1, d), (1,), (d,), (d,), *([(d, d), (d,)] if fused else [])]
    leaves = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    for i in (2, 4, 8):
        if i < len(leaves):
            leaves[i] /= d**0.5
    leaves[6] = 1 + 0.2 * leaves[6]
    return Unit(leaves, randn(heads, seed=30))


def close(found: list[Tensor], exact: list[Tensor], share: float = NEAR) -> None:
    """Each within ``share`` of its own norm; a sum over items that cancels out, of 0.1."""
    for i, (a, b) in enumerate(zip(found, exact, strict=True)):
        assert a.shape == b.shape
        assert float((a.double() - b).norm()) <= share * max(0.1, float(b.norm())), i


SIZES = [(1, 1, 1), (1, 50, 96), (2, 3, 5), (17, 50, 96), (37, 13, 33), (131, 2, 16), (5, 67, 130)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("fused", [False, True], ids=["bidirectional", "t2v"])
def test_contexts_and_gradients(level: str, size: tuple[int, int, int], fused: bool) -> None:
    one = unit(*size, fused=fused)
    close(one.with_gradients("native"), one.to(torch.float64).with_gradients("reference"))


@pytest.mark.parametrize("heads", range(1, 9))
@pytest.mark.parametrize("fused", [False, True], ids=["bidirectional", "t2v"])
def test_heads(level: str, heads: int, fused: bool) -> None:
    one = unit(7, 6, 20, heads, fused)
    close(one.with_gradients("native"), one.to(torch.float64).with_gradients("reference"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("d", [96, 21])
@pytest.mark.parametrize("weights", ["half", "fp32"])
def test_half_precision(level: str, dtype: torch.dtype, d: int, weights: str) -> None:
    """Computed in fp32 from rounded tensors; what is returned is rounded to them again, bf16: 2^-9."""
    one = unit(9, 7, d, fused=True).to(dtype)
    if weights == "fp32":
        one = Unit([*one.leaves[:2], *(t.float() for t in one.leaves[2:])], one.heads.float())
    found = one.with_gradients("native")
    assert [t.dtype for t in found] == [dtype, *(t.dtype for t in one.leaves)]
    exact = one.to(torch.float64)
    close([found[0]], [exact.context("reference")], 4e-3)
    upstream = randn(9, d, seed=20).to(dtype).double()  # the gradient arrives rounded
    leaves = [t.requires_grad_() for t in exact.leaves]
    close(found[1:], list(torch.autograd.grad(exact.context("reference", leaves), leaves, upstream)), 4e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 300.0])
def test_extreme_features(level: str, scale: float) -> None:
    one = unit(5, 6, 24)
    for t in one.leaves[:2]:
        t *= scale
    found = one.with_gradients("native")
    assert all(t.isfinite().all() for t in found)
    exact = one.to(torch.float64).context("reference")
    # logits of 1e5 round by 1e-2 where two of them are near each other; here none are
    close(found[:1], [exact], 1e-4)


def test_equal_rows_share_the_max_heads_gradient(level: str) -> None:
    """a = r where U's image of the one local row is that of the global."""
    one = unit(6, 1, 8)
    one.leaves[1] = one.leaves[0][:, None].clone()
    close(one.with_gradients("native"), one.to(torch.float64).with_gradients("reference"))


def test_missing_numbers_stay_missing(level: str) -> None:
    for leaf, place in ((0, (2, 3)), (1, (2, 4, 5))):
        one = unit(4, 6, 24)
        one.leaves[leaf][place] = torch.nan
        out = one.context("native")
        assert out[2].isnan().all() and out[[0, 1, 3]].isfinite().all()


def test_results_do_not_depend_on_the_threads(level: str) -> None:
    one = unit(203, 5, 96, fused=True)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(one.with_gradients("native"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_an_item_does_not_depend_on_its_neighbours(level: str) -> None:
    """Bitwise; at the scalar level, whose products are torch.addmm's, within their rounding."""
    one = unit(30, 9, 96, fused=True)
    few = Unit([one.leaves[0][7:9], one.leaves[1][7:9], *one.leaves[2:]], one.heads)
    found, among = few.context("native"), one.context("native")[7:9]
    assert torch.equal(found, among) or level == "scalar"
    close([found], [among.double()])


def test_strided_tensors_and_gradient() -> None:
    one = unit(12, 5, 8)
    leaves = [t.detach() for t in one.leaves]
    leaves[0], leaves[1] = randn(8, 12, seed=40).T, randn(5, 12, 9, seed=41).transpose(0, 1)[..., 1:]
    leaves[2] = leaves[2].T
    strided = Unit(leaves, one.heads)
    close(strided.with_gradients("native"), strided.to(torch.float64).with_gradients("reference"))
    glob = leaves[0].requires_grad_()
    strided.context("native").sum().backward()  # an expanded gradient arrives
    exact = strided.to(torch.float64)
    exact.leaves[0].requires_grad_()
    exact.context("reference").sum().backward()
    assert glob.grad is not None and exact.leaves[0].grad is not None
    torch.testing.assert_close(glob.grad.double(), exact.leaves[0].grad, rtol=1e-4, atol=1e-5)


def test_missing_fusion_weights_stay_missing(level: str) -> None:
    """Nothing but the fusion's sigmoid carries them."""
    one = unit(9, 6, 24, fused=True)
    one.leaves[8][3, 5] = torch.nan
    assert one.context("native").isnan().all()


def test_an_output_without_a_gradient_gives_none() -> None:
    one = unit(9, 6, 24)
    leaves = [t.requires_grad_() for t in one.leaves]
    found = torch.autograd.grad(Dropped.apply(one.context("native", leaves)).sum(), leaves, allow_unused=True)
    assert all(x is None for x in found)


@pytest.mark.parametrize("n", [1, 7, 8])
def test_auto_takes_the_reference_for_a_few_fused_items(n: int) -> None:
    one = unit(n, 6, 24, fused=True)
    assert torch.equal(one.context("auto"), one.context("reference" if n < 8 else "native"))
    with torch.autocast("cpu", torch.bfloat16):  # the reference would round
        assert torch.equal(one.context("auto"), one.context("native"))
    half = one.to(torch.bfloat16)
    assert torch.equal(half.context("auto"), half.context("native"))
    plain = unit(n, 6, 24)
    assert torch.equal(plain.context("auto"), plain.context("native"))


def test_a_large_gradient_of_local() -> None:
    """Of more than 2 MB, which Linux is asked to back with large pages; both formats."""
    for dtype in (torch.float32, torch.bfloat16):
        one = unit(190, 50, 96).to(dtype)
        found, exact = one.with_gradients("native"), one.to(torch.float64).with_gradients("reference")
        close(found[2:3], exact[2:3], NEAR if dtype == torch.float32 else 6e-3)


def test_autocast_does_not_round_the_products() -> None:
    one = unit(6, 5, 8)
    plain = one.with_gradients("native")
    with torch.autocast("cpu", torch.bfloat16):
        found = one.with_gradients("native")
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_gradcheck(level: str) -> None:
    """Central differences of fp32 contexts, whose rounding (1e-6) over the step leaves 1e-4."""
    one = unit(3, 4, 5, 2)
    leaves = [t.requires_grad_() for t in one.leaves]
    with pytest.warns(UserWarning, match="not a double precision"):
        assert torch.autograd.gradcheck(
            lambda *x: one.context("native", list(x)), leaves, eps=5e-3, atol=1e-2, rtol=2e-2
        )


def test_refusals() -> None:
    def refused(one: Unit, words: str) -> None:
        with pytest.raises(ValueError, match=f"backend 'native': {words}"):
            one.context("native")

    one = unit(3, 4, 8)
    refused(unit(0, 4, 8), "the kernel takes no empty tensors")
    refused(one.to(torch.float64), r"the kernel takes fp32, bf16 and fp16, got torch\.float64")
    refused(
        Unit([one.leaves[0].bfloat16(), *one.leaves[1:]], one.heads), "the kernel takes glob and local of one dtype"
    )
    learned = Unit(one.leaves, one.heads.clone().requires_grad_())
    refused(learned, "the kernel has no gradient of head_weight")
    (found,) = torch.autograd.grad(learned.context("auto").square().sum(), [learned.heads])  # the reference
    assert found.isfinite().all()
    assert unit(0, 4, 8).context("auto").shape == (0, 8)
    leaves = [t.requires_grad_() for t in one.leaves]
    (first,) = torch.autograd.grad(one.context("native", leaves).square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.sum().backward()
    with pytest.raises(RuntimeError, match="query: expected size 3 in dimension 0, got 2"):
        torch.ops.m3el_fast.cross_modal_attend(randn(2, 8), randn(3, 4, 8))


def arguments(one: Unit) -> tuple[Any, ...]:
    *tensors, fusion, fusion_bias = one.leaves if len(one.leaves) == 10 else [*one.leaves, None, None]
    return (*tensors, fusion, fusion_bias, one.heads, one.lam, 1e-5)


@pytest.mark.parametrize("fused", [False, True], ids=["bidirectional", "t2v"])
def test_opcheck(fused: bool) -> None:
    check, named, one = torch.library.opcheck, torch.ops.m3el_fast, unit(5, 4, 6, fused=fused)
    plain = arguments(one)
    out, *kept = native_cross_modal.context(*plain)
    check(named.native_cross_modal_backward.default, (randn(5, 6), *kept, *plain))
    for t in one.leaves:
        t.requires_grad_()
    check(named.native_cross_modal_context.default, arguments(one))
    query, local = randn(5, 6), randn(5, 4, 6, seed=1)
    for bias in (None, randn(7)):
        check(named.cross_modal_linear.default, (query, randn(6, 7), bias))
    check(named.cross_modal_attend.default, (query, local))
    check(named.cross_modal_attend_backward.default, (randn(5, 6, seed=2), query, local))
    weights = tuple(t.detach() for t in one.leaves[4:8])
    heads = (one.heads, reference.HEAD_TEMPERATURES[5], one.lam, 4)
    tail = (query, out, out, out if fused else None, *weights, 1e-5, *heads)
    check(named.cross_modal_finish.default, tail)
    check(named.cross_modal_finish_backward.default, (randn(5, 6, seed=2), *tail))


def trained(backend: str, compiled: bool = False) -> list[float]:
    one, aim = unit(24, 5, 12, fused=True), randn(24, 12, seed=50)
    leaves = [t.clone().requires_grad_() for t in one.leaves]

    def loss() -> Tensor:
        return (one.context(backend, leaves) - aim).square().mean()

    step = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    optimizer = torch.optim.AdamW(leaves, lr=3e-2)
    return train(step, optimizer)


def test_training_repeats_the_reference(level: str) -> None:
    found, expected = trained("native"), trained("reference")
    assert expected[-1] < 0.5 * expected[0]
    assert found == pytest.approx(expected, rel=1e-3)


def test_compiled_training_without_a_graph_break() -> None:
    assert trained("auto", compiled=True) == pytest.approx(trained("native"), rel=1e-5)
