"""The Triton kernels of MIMIC's dual-gated scores against the reference in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")


from kernel_results import close
from m3el_fast import ops
from m3el_fast.ops import CrossModalWeights, DualConstants, DualWeights, LayerNormWeights, gpu, triton_dual

# Largest error, as a share of the largest value: fp32 has products of 2^-21 and sums of some hundred terms, and the
# scores are differences; with half rows (the same rounded rows in both) results are rounded to their 8 or 11 bits.
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 1e-2, torch.float16: 3e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
NAMES = ("source", "target", "gate", "bias")


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dual_weights(d: int) -> DualWeights:
    f, fb, w, wb, *norms = (randn(*s, seed=i) / d**0.5 for i, s in enumerate([(d, d), (d,), (1, d), (1,)] + 4 * [(d,)]))
    return DualWeights(f, fb, w, wb, LayerNormWeights(norms[0], norms[1]), LayerNormWeights(norms[2], norms[3], 1e-4))


class Unit:
    """Leaf tensors of one call: source, target, and the constants gate and bias."""

    def __init__(
        self, s: int, t: int, d: int, device: str, dtype: torch.dtype = torch.float32, scale: float = 1
    ) -> None:
        weights = dual_weights(d)
        constants = ops.dual_constants(weights)
        self.eps = constants[2:]
        rows = (
            ops.dual_source(scale * randn(s, d, seed=11), weights),
            ops.dual_target(scale * randn(t, d, seed=12), scale * randn(t, d, seed=13), weights),
        )
        self.leaves = [x.to(device, dtype) for x in rows] + [x.to(device, torch.float32) for x in constants[:2]]
        self.leaves = [x.requires_grad_() for x in self.leaves]

    def double(self) -> Unit:
        other = object.__new__(Unit)
        other.leaves = [x.detach().double().requires_grad_() for x in self.leaves]
        other.eps = self.eps
        return other

    def scores(self, backend: ops.backends.Backend) -> Tensor:
        return ops.dual_scores(*self.leaves[:2], DualConstants(*self.leaves[2:], *self.eps), backend=backend)

    def gradients(self, backend: ops.backends.Backend) -> tuple[Tensor, list[Tensor]]:
        out = self.scores(backend)
        weight = randn(*out.shape, seed=30).to(out.device, out.dtype)
        return out.detach(), list(torch.autograd.grad((out * weight).sum(), self.leaves))


def same(unit: Unit, tolerance: float) -> None:
    out, found = unit.gradients("triton")
    exact, expected = unit.double().gradients("reference")
    assert out.dtype == unit.leaves[0].dtype
    close("scores", out, exact, tolerance)
    d = (unit.leaves[0].shape[1] - 7) // 3
    for name, leaf, x, y in zip(NAMES, unit.leaves, found, expected, strict=True):
        assert x.dtype == leaf.dtype
        if x.dim() == 0:
            close(name, x, y, tolerance)
            continue
        for i in range(3):  # each vector and each scalar by its own size
            close(f"{name} vector {i}", x[:, i * d : (i + 1) * d], y[:, i * d : (i + 1) * d], tolerance)
        for i in range(7):
            close(f"{name} scalar {i}", x[:, 3 * d + i], y[:, 3 * d + i], tolerance)


@pytest.mark.parametrize(("s", "t", "d"), [(1, 1, 5), (67, 3, 16), (5, 71, 24), (33, 35, 96), (2, 3, 131)])
@pytest.mark.usefixtures("poison")
def test_against_the_reference(s: int, t: int, d: int, device: str) -> None:
    same(Unit(s, t, d, device), TOLERANCE[torch.float32])


@DTYPES
def test_dtypes(dtype: torch.dtype, device: str) -> None:
    same(Unit(35, 9, 32, device, dtype), TOLERANCE[dtype])


def test_equal_rows_score_alike(device: str) -> None:
    unit = Unit(3, 66, 16, device)
    with torch.no_grad():
        unit.leaves[1][65] = unit.leaves[1][0]  # in another tile
    out = unit.scores("triton")
    assert torch.equal(out[:, 65], out[:, 0])


def test_no_variance(device: str) -> None:
    """Both variances 0 or below by rounding: they are cut at 0; the gradient passes at 0 and not below."""
    unit = Unit(2, 3, 16, device)
    with torch.no_grad():
        unit.leaves[0].zero_()
        unit.leaves[1].zero_()
        unit.leaves[0][1, 48] = -1.0  # a . a
        unit.leaves[1][1, 52] = -1e3  # k . k
    same(unit, TOLERANCE[torch.float32])


def test_zero_eps(device: str) -> None:
    """Rows of a tile that are not there must not become 0 times infinity."""
    unit = Unit(3, 5, 16, device)
    unit.eps = (0.0, 0.0)
    same(unit, TOLERANCE[torch.float32])


def test_extreme_values(device: str) -> None:
    unit = Unit(3, 5, 16, device, scale=1e3)
    out, found = unit.gradients("triton")
    close("scores", out, unit.double().scores("reference").detach(), 1e-3)
    assert all(x.isfinite().all() for x in found)


def test_nan_stays_with_its_row(device: str) -> None:
    unit = Unit(3, 5, 16, device)
    with torch.no_grad():
        unit.leaves[0][1, 2] = math.nan
    assert unit.scores("triton").isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("d", [3, 8])  # rows of 16 values, which need no padding, and of 31
def test_non_contiguous(d: int, device: str) -> None:
    """Slices of wider rows, with a stride that is a multiple of 16 and one that is not, and columns far apart."""
    unit = Unit(5, 6, d, device)
    expected = unit.gradients("triton")
    source, target = (x.detach() for x in unit.leaves[:2])
    for width in (48, 50):
        wide = torch.full((5, width), math.nan, device=device)
        wide[:, : 3 * d + 7] = source
        unit.leaves[0] = wide[:, : 3 * d + 7].requires_grad_()
        unit.leaves[1] = target.T.contiguous().T.requires_grad_()
        out, found = unit.gradients("triton")
        assert torch.equal(out, expected[0])
        assert all(torch.equal(x, y) for x, y in zip(found, expected[1], strict=True))


def test_constants_may_be_vectors_of_one(device: str) -> None:
    unit = Unit(2, 3, 8, device)
    unit.leaves[2:] = [x.detach()[None].requires_grad_() for x in unit.leaves[2:]]
    found, expected = unit.gradients("triton")[1], unit.double().gradients("reference")[1]
    for name, x, y in zip(NAMES, found, expected, strict=True):
        close(name, x, y, TOLERANCE[torch.float32])


def test_gradient_of_a_transposed_and_of_a_sum(device: str) -> None:
    unit = Unit(3, 4, 16, device)
    exact = unit.double()
    weight = randn(4, 3, seed=5)
    for loss in (lambda x: (x.T * weight.to(x.device, x.dtype)).sum(), lambda x: x.sum()):
        found = torch.autograd.grad(loss(unit.scores("triton")), unit.leaves)
        expected = torch.autograd.grad(loss(exact.scores("reference")), exact.leaves)
        for name, x, y in zip(NAMES, found, expected, strict=True):
            close(name, x, y, TOLERANCE[torch.float32])


def test_deterministic(device: str) -> None:
    unit = Unit(40, 70, 16, device)
    (first, gradients), (second, again) = unit.gradients("triton"), unit.gradients("triton")
    assert torch.equal(first, second)
    assert all(torch.equal(x, y) for x, y in zip(gradients, again, strict=True))


def test_no_second_derivative(device: str) -> None:
    unit = Unit(2, 3, 8, device)
    first = torch.autograd.grad(unit.scores("triton").sum(), unit.leaves, create_graph=True)
    with pytest.raises(NotImplementedError, match="dual_scores: no second derivative"):
        first[0].sum().backward()


def test_refusals(device: str) -> None:
    unit = Unit(2, 3, 8, device)
    source, target, constants = *unit.leaves[:2], DualConstants(*unit.leaves[2:], *unit.eps)
    exact = unit.double()
    with pytest.raises(ValueError, match="no empty tensors"):
        ops.dual_scores(source[:0], target, constants, backend="triton")
    with pytest.raises(ValueError, match="of one dtype"):
        ops.dual_scores(source, target.bfloat16(), constants, backend="triton")
    with pytest.raises(ValueError, match="takes fp32, bf16 and fp16"):
        exact.scores("triton")
    rows = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="no Triton kernel"):
        ops.dual_pairs(source, target, constants, rows, rows, backend="triton")


@pytest.mark.usefixtures("like_gpu")
def test_auto_falls_back(device: str) -> None:
    exact = Unit(2, 3, 8, device).double()
    assert torch.equal(exact.scores("auto"), exact.scores("reference"))


def test_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    with pytest.raises(ValueError, match="CUDA tensors, got cpu"):
        Unit(2, 3, 8, "cpu").scores("triton")


def test_opcheck(device: str) -> None:
    unit = Unit(2, 3, 8, device)
    torch.library.opcheck(triton_dual.scores, (*unit.leaves, *unit.eps))
    plain = [x.detach() for x in unit.leaves]
    torch.library.opcheck(triton_dual.backward, (torch.ones(2, 3, device=device), *plain, *unit.eps))


@pytest.mark.usefixtures("like_gpu")
def test_both_ops_compile_into_one_graph(device: str) -> None:
    unit = Unit(2, 3, 8, device)
    d = 8
    glob, local = randn(2, d, seed=1).float().to(device), randn(2, 3, d, seed=2).float().to(device)
    u, bias, w, b, norm = (randn(*s, seed=3).float().to(device) for s in [(d, d), (d,), (1, d), (1,), (d,)])
    cross = CrossModalWeights(u, bias, w, b, LayerNormWeights(norm, bias), torch.ones(5, device=device), 1.0)

    def both(source: Tensor, target: Tensor, gate: Tensor, bias: Tensor, glob: Tensor) -> Tensor:
        scores = ops.dual_scores(source, target, DualConstants(gate, bias, *unit.eps))
        return scores.sum() + ops.cross_modal_context(glob, local, cross).square().sum()

    leaves = [*unit.leaves, glob.requires_grad_()]
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*leaves), leaves)
    expected = torch.autograd.grad(both(*leaves), leaves)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
