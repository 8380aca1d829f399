"""The contrastive losses' Triton kernels against the reference in fp64: losses, gradients, masks, slices, extremes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import triton_losses

pytest.importorskip("triton")

from m3el_fast.kernels import contrastive, contrastive_backward, contrastive_tiles

Loss = Callable[..., Tensor]


def icl(**options: Any) -> Loss:
    return lambda e, m, **more: ops.icl_loss(e, m, **options, **more)


LOSSES: dict[str, Loss] = {
    "paper": icl(),
    "paper-online": icl(tau=0.01, beta=0.3, gamma=1.7),  # logits too far apart for one bound of them all
    "paper-no-same-side": icl(tau=0.5, beta=0.0, gamma=0.7),
    "paper-no-other-side": icl(tau=1.0, beta=1.0, gamma=0.0),
    "released": icl(variant="released"),
    "released-online": icl(tau=0.01, variant="released", beta=0.5, gamma=1.3),
    "infonce": lambda e, m, **more: ops.infonce_loss(0.5 * e, m, **more),
    "mclet": ops.mclet_loss,
}
MAIN = ["paper", "released", "infonce", "mclet"]

# (dtype, relative error of the loss, that of the gradient by its largest entry). The features are rounded before both
# sides see them. An error of 2^-21 (tf32x3) of logits up to 130 is one of 6e-5 of their exponentials. Half types round
# the gradient's coefficients (bf16: 2^-9; fp16 in TF32: 2^-11) and the gradient itself.
FP32 = (2e-5, 1e-4)
HALVES = [(torch.bfloat16, 2e-5, 1.2e-2), (torch.float16, 2e-5, 2e-3)]


def pair(batch: int, d: int, device: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated rows of norms near 3."""
    generator = torch.Generator().manual_seed(seed)
    e, noise = torch.randn(2, batch, d, generator=generator)
    m = e + 1.5 * noise
    return tuple((3 * d**-0.5 * x).to(device, dtype).requires_grad_() for x in (e, m))  # type: ignore[return-value]


def golds(batch: int, device: str) -> Tensor:
    """Entities of a batch: each of them two or three times."""
    return (torch.arange(batch, device=device) * 5 % (batch // 2 + 1)) - 3


def value_and_gradients(loss: Loss, inputs: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, list[Tensor]]:
    value = loss(*inputs, **options)
    return value.detach(), list(torch.autograd.grad(3 * value, inputs))


def check(loss: Loss, inputs: tuple[Tensor, ...], of_loss: float, of_gradient: float, **options: Any) -> None:
    value, gradients = value_and_gradients(loss, inputs, backend="triton", **options)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    expected, wanted = value_and_gradients(loss, exact, backend="reference", **options)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=of_loss, atol=of_loss)
    for found, right, x in zip(gradients, wanted, inputs, strict=True):
        assert found.dtype == x.dtype
        assert found.shape == x.shape
        # a positive's 1 - P where that is about 0 leaves 2^-24 of the terms, which are up to 30 here
        atol = of_gradient * float(right.abs().max()) + 3e-5
        torch.testing.assert_close(found.double(), right, rtol=0, atol=atol)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients(name: str, device: str) -> None:
    check(LOSSES[name], pair(40, 20, device), *FP32)


@pytest.mark.parametrize("name", [*MAIN, "paper-online"])
@pytest.mark.parametrize(("dtype", "of_loss", "of_gradient"), HALVES, ids=["bf16", "fp16"])
def test_half_types(name: str, dtype: torch.dtype, of_loss: float, of_gradient: float, device: str) -> None:
    check(LOSSES[name], pair(40, 20, device, dtype), of_loss, of_gradient)


@pytest.mark.parametrize(("batch", "d"), [(1, 1), (1, 7), (2, 100), (3, 1000), (64, 16), (67, 17), (29, 1)])
@pytest.mark.parametrize("name", ["paper", "infonce"])
def test_sizes(name: str, batch: int, d: int, device: str) -> None:
    check(LOSSES[name], pair(batch, d, device), *FP32)


@pytest.mark.parametrize(
    ("name", "form"), [*((name, "ids") for name in MAIN), ("paper", "one-sided mask"), ("infonce", "mask")]
)
def test_duplicates(name: str, form: str, device: str) -> None:
    inputs, gold = pair(70, 12, device), golds(70, device)
    duplicates = gold if form == "ids" else gold[:, None] == gold
    if form == "one-sided mask":
        duplicates = duplicates.triu(3)
    check(LOSSES[name], inputs, *FP32, duplicates=duplicates)
    for backend in ("triton", "reference"):
        with_, without = (LOSSES[name](*inputs, duplicates=x, backend=backend) for x in (duplicates, None))
        assert with_ < without


@pytest.mark.parametrize(("name", "masked"), [("paper", True), ("mclet", False)])
def test_slices_of_anchors_add_up(name: str, masked: bool, device: str) -> None:
    """As processes of a distributed run: each takes its own anchors, the mean over processes is the whole batch's."""
    batch = 70
    inputs, duplicates = pair(batch, 10, device), golds(batch, device) if masked else None
    cuts = [0, 35, 70]
    whole, gradients = value_and_gradients(LOSSES[name], inputs, backend="triton", duplicates=duplicates)
    parts = []
    for first, last in itertools.pairwise(cuts):
        options: dict[str, Any] = {"anchors": range(first, last), "duplicates": duplicates}
        parts.append(value_and_gradients(LOSSES[name], inputs, backend="triton", **options))
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).mean(), whole, rtol=FP32[0], atol=FP32[0])
    for k, gradient in enumerate(gradients):
        mean = torch.stack([found[k] for _, found in parts]).mean(0)
        torch.testing.assert_close(mean, gradient, rtol=0, atol=FP32[1] * float(gradient.abs().max()))


@pytest.mark.parametrize("name", ["paper", "infonce"])
@pytest.mark.parametrize("anchors", [range(0, 1), range(69, 70), range(3, 68)], ids=str)
def test_a_slice_of_anchors(name: str, anchors: range, device: str) -> None:
    check(LOSSES[name], pair(70, 12, device), *FP32, anchors=anchors, duplicates=golds(70, device))


@pytest.mark.parametrize(
    ("name", "anchors"), [("paper", None), ("infonce", None), ("mclet", range(70, 140)), ("infonce", range(190, 200))]
)
def test_groups_of_tiles_and_strips(
    name: str, anchors: range | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large batches: programs of the forward pass walk over several tiles, the backward pass over several strips."""
    monkeypatch.setattr(contrastive, "_BLOCKS", 2)
    monkeypatch.setattr(contrastive_backward, "_STRIP", 192)
    monkeypatch.setattr(contrastive_backward, "_PROGRAMS", 6)
    inputs = pair(200, 24, device)
    check(LOSSES[name], inputs, *FP32, anchors=anchors, duplicates=golds(200, device))


@pytest.mark.slow
def test_large_tiles(device: str) -> None:
    """Those of batches above 1,024."""
    assert contrastive_tiles.tile_of(1025, 16, torch.float32, masked=False).size == 128
    check(LOSSES["paper"], pair(1025, 16, device), *FP32, anchors=range(1000, 1025))


@pytest.mark.parametrize("name", MAIN)
def test_ties(name: str, device: str) -> None:
    rows = torch.ones(20, 8, device=device, requires_grad=True)
    check(LOSSES[name], (rows, rows.detach().clone().requires_grad_()), *FP32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["paper-online", "infonce"])
@pytest.mark.parametrize("scale", [1e3, 0.0])
def test_extreme_rows_stay_finite(name: str, dtype: torch.dtype, scale: float, device: str) -> None:
    inputs = tuple((scale * x.detach().float()).to(dtype).requires_grad_() for x in pair(9, 6, device))
    value, gradients = value_and_gradients(LOSSES[name], inputs, backend="triton")
    assert value.isfinite()
    if (dtype, scale) != (torch.float16, 0.0):  # 1 / eps passes fp16's largest number
        assert all(g.isfinite().all() for g in gradients)


def test_normalisation_of_rows_shorter_than_eps(device: str) -> None:
    """F.normalize divides them by eps, a constant."""
    e, m = (x.detach().clone() for x in pair(8, 5, device))
    e[2], m[4] = 0, 1e-13 * m[4]
    check(LOSSES["paper"], (e.requires_grad_(), m.requires_grad_()), *FP32)


@pytest.mark.parametrize("name", ["paper-online", "infonce"])
def test_logits_far_apart(name: str, device: str) -> None:
    """Terms that vanish beside others are the largest of other anchors."""
    e, m = (x.detach().double() for x in pair(80, 16, device))
    size = torch.logspace(-2, 1.5, 80, device=device, dtype=torch.float64)[:, None]
    inputs = tuple((size * x).float().requires_grad_() for x in (e, m))
    check(LOSSES[name], inputs, 1e-5, 2e-4)


def test_inputs_need_not_be_contiguous(device: str) -> None:
    e, m = pair(33, 24, device)
    gold = golds(66, device)[::2]
    views = (e.detach()[:, ::2].requires_grad_(), m.detach().t().contiguous().t()[:, :12].requires_grad_())
    assert not any(x.is_contiguous() for x in (*views, gold))
    check(LOSSES["paper"], views, *FP32, duplicates=gold)


def test_the_same_bits_every_time(device: str) -> None:
    inputs = pair(70, 20, device, torch.bfloat16)
    one, other = (value_and_gradients(LOSSES["paper-online"], inputs, backend="triton") for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


def test_nothing_outside_is_read_and_all_is_written(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows between NaN rows, and memory that holds NaN before it is written."""
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> Tensor:
        return empty(*args, **options).fill_(torch.nan)

    def guarded(x: Tensor) -> Tensor:
        whole = torch.full((len(x) + 128, x.shape[1]), torch.nan, device=device)
        whole[64:-64] = x.detach()
        return whole[64:-64].requires_grad_()

    inputs = tuple(guarded(x) for x in pair(20, 20, device))
    monkeypatch.setattr(contrastive.torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: poisoned(x.shape, dtype=x.dtype, device=x.device))
    for name in ("paper", "paper-online", "infonce"):
        for anchors in (None, range(15, 18)):
            value, gradients = value_and_gradients(LOSSES[name], inputs, backend="triton", anchors=anchors)
            assert value.isfinite()
            assert all(g.isfinite().all() for g in gradients)


def test_only_what_is_asked_for_has_a_gradient(device: str) -> None:
    e, m = pair(10, 8, device)
    alone = torch.autograd.grad(ops.icl_loss(e, m.detach(), backend="triton"), [e])
    both = torch.autograd.grad(ops.icl_loss(e, m, backend="triton"), [e, m])
    assert torch.equal(alone[0], both[0])


@pytest.mark.usefixtures("like_gpu")
def test_auto_takes_the_kernel(device: str) -> None:
    inputs = pair(10, 8, device)
    for loss in LOSSES.values():
        assert torch.equal(loss(*inputs), loss(*inputs, backend="triton"))
    exact = tuple(x.double() for x in inputs)
    assert ops.icl_loss(*exact).dtype == torch.float64


def test_no_second_derivative(device: str) -> None:
    inputs = pair(4, 8, device)
    first = torch.autograd.grad(ops.icl_loss(*inputs, backend="triton"), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="contrastive losses: no second derivative"):
        first[0].sum().backward()


@pytest.mark.usefixtures("like_gpu")
@pytest.mark.parametrize("name", ["paper", "infonce"])
def test_is_one_graph(name: str, device: str) -> None:
    inputs, options = pair(6, 8, device), {"duplicates": golds(6, device), "anchors": range(1, 5)}
    compiled = torch.compile(lambda *x: LOSSES[name](*x, **options), fullgraph=True, backend="aot_eager")
    found, expected = (
        torch.autograd.grad(f(*inputs), inputs) for f in (compiled, lambda *x: LOSSES[name](*x, **options))
    )
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_refusals(device: str) -> None:
    e, m = pair(10, 8, device)
    with pytest.raises(ValueError, match=r"takes fp32, bf16 and fp16, got torch\.float64"):
        ops.icl_loss(e.double(), m.double(), backend="triton")
    with pytest.raises(ValueError, match=r"one dtype, got torch\.float32 and torch\.bfloat16"):
        ops.infonce_loss(e, m.bfloat16(), backend="triton")
    with pytest.raises(ValueError, match="takes no empty tensors"):
        ops.mclet_loss(e[:, :0], m[:, :0], backend="triton")


def test_opcheck(device: str) -> None:
    e, m = pair(5, 6, device)
    arguments = (e, m, golds(5, device), 1, 4, 30.0, 0.8, None, 1.0, False, True)
    torch.library.opcheck(triton_losses.contrastive, arguments)
    _, lse, inverse = triton_losses.contrastive(*arguments)
    gradient = torch.ones((), device=device)
    rest = (e.detach(), m.detach(), *arguments[2:])
    torch.library.opcheck(triton_losses.contrastive_backward, (gradient, lse, inverse, *rest))
