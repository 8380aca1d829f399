"""The Triton kernels of cross-modal contexts against the reference in fp64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from m3el_fast.kernels import cross_modal, cross_modal_backward

from kernel_results import close
from m3el_fast import ops
from m3el_fast.ops import CrossModalWeights, LayerNormWeights, gpu, triton_cross_modal

# Largest error, as a share of the largest value: fp32 has products of 2^-21 and sums of some hundred terms; with half
# features the result is rounded to their 8 or 11 bits, and products on a GPU to TF32's 11.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 3e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
NAMES = (
    "glob",
    "local",
    "u_weight",
    "u_bias",
    "gate_weight",
    "gate_bias",
    "norm",
    "norm_bias",
    "fusion",
    "fusion_bias",
)


def randn(*shape: int, seed: int, device: str, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    values = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(device, dtype).requires_grad_()


class Unit:
    """Leaf tensors of one call, in the op's order."""

    def __init__(
        self,
        n: int,
        L: int,
        d: int,
        device: str,
        dtype: torch.dtype = torch.float32,
        weight_dtype: torch.dtype | None = None,
        heads: int = 5,
        fusion: bool = False,
        scale: float = 1.0,
    ) -> None:
        own = weight_dtype or dtype
        shapes = [(d, d), (d,), (1, d), (1,), (d,), (d,)] + ([(d, d), (d,)] if fusion else [])
        self.leaves = [
            randn(n, d, seed=1, device=device, dtype=dtype, scale=scale),
            randn(n, L, d, seed=2, device=device, dtype=dtype, scale=scale),
            *(randn(*s, seed=3 + i, device=device, dtype=own, scale=d**-0.5) for i, s in enumerate(shapes)),
        ]
        self.heads = randn(heads, seed=20, device=device, dtype=own).detach()

    def double(self) -> Unit:
        other = object.__new__(Unit)
        other.leaves = [x.detach().double().requires_grad_() for x in self.leaves]
        other.heads = self.heads.double()
        return other

    def weights(self) -> CrossModalWeights:
        _, _, u, ub, gate, gb, norm, nb, *fusion = self.leaves
        return CrossModalWeights(u, ub, gate, gb, LayerNormWeights(norm, nb, 1e-5), self.heads, 0.7, *fusion)

    def context(self, backend: ops.backends.Backend) -> Tensor:
        return ops.cross_modal_context(self.leaves[0], self.leaves[1], self.weights(), backend=backend)

    def gradients(self, backend: ops.backends.Backend) -> tuple[Tensor, list[Tensor]]:
        out = self.context(backend)
        weight = randn(*out.shape, seed=30, device=out.device.type, dtype=out.dtype).detach()
        return out.detach(), list(torch.autograd.grad((out * weight).sum(), self.leaves))


def same(unit: Unit, tolerance: float) -> None:
    out, found = unit.gradients("triton")
    exact, expected = unit.double().gradients("reference")
    assert out.dtype == unit.leaves[0].dtype
    close("context", out, exact, tolerance)
    for name, leaf, x, y in zip(NAMES, unit.leaves, found, expected, strict=False):
        assert x.dtype == leaf.dtype
        close(name, x, y, tolerance)


SIZES = pytest.mark.parametrize(
    ("n", "L", "d", "fusion"),
    [(1, 1, 3, False), (17, 50, 96, False), (33, 5, 16, True), (5, 9, 20, False), (2, 3, 130, True), (7, 13, 17, True)],
)


@SIZES
@pytest.mark.usefixtures("poison")
def test_against_the_reference(n: int, L: int, d: int, fusion: bool, device: str) -> None:
    same(Unit(n, L, d, device, fusion=fusion), TOLERANCE[torch.float32])


@DTYPES
@pytest.mark.parametrize("fusion", [False, True], ids=["bidirectional", "t2v"])
def test_dtypes(dtype: torch.dtype, fusion: bool, device: str) -> None:
    same(Unit(19, 7, 24, device, dtype, fusion=fusion), TOLERANCE[dtype])


def test_half_features_with_fp32_weights(device: str) -> None:
    same(Unit(5, 4, 16, device, torch.bfloat16, torch.float32), TOLERANCE[torch.bfloat16])


class Dropped(torch.autograd.Function):
    """Passes values on, and gives back no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:  # type: ignore[override]
        return None


def test_an_output_without_a_gradient_gives_none(device: str) -> None:
    unit = Unit(3, 4, 8, device)
    found = torch.autograd.grad(Dropped.apply(unit.context("triton")).sum(), unit.leaves, allow_unused=True)
    assert all(x is None for x in found)


@pytest.mark.parametrize("heads", range(1, 9))
def test_heads(heads: int, device: str) -> None:
    same(Unit(3, 4, 8, device, heads=heads), TOLERANCE[torch.float32])


def test_many_items(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """The configuration for many items gives what the one for few does."""
    unit = Unit(40, 6, 96, device)
    tiles = cross_modal.forward_tiles
    assert tiles(40, 6, 96, torch.float32) != tiles(100_000, 6, 96, torch.float32)
    monkeypatch.setattr(cross_modal, "forward_tiles", lambda n, *rest: tiles(100_000, *rest))
    same(unit, TOLERANCE[torch.float32])


def test_sums_of_several_parts(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Each part of the weights' gradients takes several tiles of items."""
    monkeypatch.setattr(cross_modal_backward, "_MOST_PARTS", 2)
    same(Unit(150, 2, 8, device), TOLERANCE[torch.float32])


@pytest.mark.parametrize("fusion", [False, True], ids=["bidirectional", "t2v"])
def test_ties(fusion: bool, device: str) -> None:
    """Equal rows share the attention; with a == r the max head splits its gradient, and relu has none at 0."""
    unit = Unit(4, 4, 16, device, fusion=fusion)
    with torch.no_grad():
        unit.leaves[1].copy_(unit.leaves[0][:, None].expand(4, 4, 16))  # a mean of 4 equal rows is exact: a == r
        unit.leaves[2][:5] = 0
        unit.leaves[3][:5] = 0  # relu at 0
    same(unit, TOLERANCE[torch.float32])


def test_extreme_logits(device: str) -> None:
    """Logits of 1e6: the softmax takes one row, nothing overflows."""
    unit = Unit(9, 11, 32, device, scale=1e3)
    out, found = unit.gradients("triton")
    close("context", out, unit.double().context("reference").detach(), 1e-4)
    assert all(x.isfinite().all() for x in found)


def test_logits_above_those_of_the_forward_pass(device: str) -> None:
    """Sums of another order round huge logits otherwise: no probability passes 1."""
    unit = Unit(3, 4, 8, device)
    leaves = [*(x.detach() for x in unit.leaves), None, None, unit.heads, 0.7, 1e-5]
    out, rows, stats = triton_cross_modal.context(*leaves)
    stats[0] -= 1e3
    found = triton_cross_modal.backward(out, rows, stats, *leaves)
    assert all(x.isfinite().all() for x in found)


def test_non_contiguous(device: str) -> None:
    unit = Unit(5, 6, 16, device)
    expected = unit.gradients("triton")
    wide = torch.full((5, 9, 40), math.nan, device=device)
    wide[:, 2:8, 7:23] = unit.leaves[1].detach()
    glob = unit.leaves[0].detach().T.contiguous().T
    unit.leaves[:2] = [glob.requires_grad_(), wide[:, 2:8, 7:23].requires_grad_()]
    unit.leaves[2] = unit.leaves[2].detach().T.contiguous().T.requires_grad_()
    out, found = unit.gradients("triton")
    assert torch.equal(out, expected[0])
    assert all(torch.equal(x, y) for x, y in zip(found, expected[1], strict=True))


def test_rows_far_apart(device: str) -> None:
    """Offsets beyond 2^31, of which nothing in between is touched."""
    unit = Unit(2, 3, 16, device, torch.bfloat16)
    expected = unit.gradients("triton")
    apart = 1 << 30
    memory = torch.empty(2 * apart + 2 * 16, device=device, dtype=torch.bfloat16)
    local = memory.as_strided((2, 3, 16), (16, apart, 1)).copy_(unit.leaves[1].detach())
    unit.leaves[1] = local.requires_grad_()
    out, found = unit.gradients("triton")
    assert torch.equal(out, expected[0])
    assert all(torch.equal(x, y) for x, y in zip(found, expected[1], strict=True))


def test_expanded_gradient(device: str) -> None:
    unit = Unit(3, 4, 16, device)
    found = torch.autograd.grad(unit.context("triton").sum(), unit.leaves[0])[0]
    exact = unit.double()
    expected = torch.autograd.grad(exact.context("reference").sum(), exact.leaves[0])[0]
    close("glob", found, expected, TOLERANCE[torch.float32])


def test_deterministic(device: str) -> None:
    unit = Unit(70, 5, 24, device, fusion=True)
    (first, gradients), (second, again) = unit.gradients("triton"), unit.gradients("triton")
    assert torch.equal(first, second)
    assert all(torch.equal(x, y) for x, y in zip(gradients, again, strict=True))


def test_nan_stays_with_its_item(device: str) -> None:
    unit = Unit(3, 5, 16, device)
    with torch.no_grad():
        unit.leaves[1][1, 2, 3] = math.nan
    assert unit.context("triton").isnan().all(1).tolist() == [False, True, False]


def test_no_second_derivative(device: str) -> None:
    unit = Unit(2, 3, 8, device)
    first = torch.autograd.grad(unit.context("triton").sum(), unit.leaves, create_graph=True)
    with pytest.raises(NotImplementedError, match="cross_modal_context: no second derivative"):
        first[0].sum().backward()


def test_refusals(device: str) -> None:
    def refused(glob: Tensor, local: Tensor, weights: CrossModalWeights, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            ops.cross_modal_context(glob, local, weights, backend="triton")
        ops.cross_modal_context(glob, local, weights)  # auto: another

    unit = Unit(2, 3, 8, device)
    glob, local, weights = *unit.leaves[:2], unit.weights()
    refused(glob, local, weights._replace(head_weight=unit.heads.clone().requires_grad_()), "gradient of head_weight")
    refused(glob[:0], local[:0], weights, "no empty tensors")
    large = Unit(1, 2, 257, device)
    refused(*large.leaves[:2], large.weights(), "up to 256 dimensions, got 257")
    exact = unit.double()
    refused(*exact.leaves[:2], exact.weights(), "fp32, bf16 and fp16, got torch.float64")
    with pytest.raises(ValueError, match="of one dtype"):
        ops.cross_modal_context(glob, local.bfloat16(), weights, backend="triton")


def test_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    with pytest.raises(ValueError, match="CUDA tensors, got cpu"):
        Unit(2, 3, 8, "cpu").context("triton")


@pytest.mark.parametrize("fusion", [False, True], ids=["bidirectional", "t2v"])
def test_opcheck(fusion: bool, device: str) -> None:
    unit = Unit(2, 3, 8, device, fusion=fusion)
    leaves = unit.leaves + ([] if fusion else [None, None])
    arguments = (*leaves, unit.heads, 0.7, 1e-5)
    torch.library.opcheck(triton_cross_modal.context, arguments)
    out, kept, stats = (x.detach() for x in triton_cross_modal.context(*arguments))
    plain = [None if x is None else x.detach() for x in leaves]
    torch.library.opcheck(triton_cross_modal.backward, (out, kept, stats, *plain, unit.heads, 0.7, 1e-5))


@pytest.mark.usefixtures("like_gpu")
def test_compiles(device: str) -> None:
    unit = Unit(2, 3, 8, device)
    compiled = torch.compile(lambda *x: ops.cross_modal_context(*x), fullgraph=True, backend="aot_eager")
    out = compiled(*unit.leaves[:2], unit.weights())
    found = torch.autograd.grad(out.square().sum(), unit.leaves)
    eager = unit.context("triton")
    expected = torch.autograd.grad(eager.square().sum(), unit.leaves)
    assert torch.equal(out, eager)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
