"""Triton's global-to-local scores and their gradient against the reference in fp64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import LayerNormWeights, gpu, triton_g2l

pytest.importorskip("triton")


class Mode(NamedTuple):
    """Errors are shares of the standard deviation of the scores, or of the norm of a gradient."""

    dtype: torch.dtype
    precision: ops.Precision
    scores: float
    gradient: float


MODES = {
    # fp32 sums; on a GPU each product of three tf32 ones is off by up to 2^-21
    "fp32": Mode(torch.float32, "fp32", 2e-5, 1e-5),
    # operands rounded to 2^-9; logits here are up to 50, so that the attention is off by some percent
    "fp32-bf16": Mode(torch.float32, "bf16", 4e-2, 2e-2),
    # and results: 2^-9 and 2^-11 of the largest
    "bf16": Mode(torch.bfloat16, "fp32", 4e-2, 2e-2),
    "fp16": Mode(torch.float16, "fp32", 5e-3, 3e-3),
}
SIZES = [  # E, M, Le, Lm, d: one of all; CLIP's text and images; primes; no multiple of any tile; more than one tile
    (1, 1, 1, 1, 2),
    (3, 5, 2, 40, 96),
    (3, 2, 3, 50, 96),
    (131, 3, 2, 13, 7),
    (67, 5, 2, 33, 36),
    (5, 2, 2, 64, 16),
]
# keys in sections, in one dtype or all
WIDE = [(5, 2, 2, 300, 96), (3, 3, 2, 600, 40), (2, 2, 2, 77, 256), (3, 2, 2, 9, 132)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def case(sizes: tuple[int, ...], mode: Mode, scale: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
    """Operands as middles of tensors of NaN: whatever is read beside them shows."""
    entities, mentions, rows, columns, d = sizes
    shapes = {
        "query": (entities, rows, d),
        "key": (mentions, columns, d),
        "value": (mentions, columns, d),
        "gate": (entities, d),
        "weight": (d,),
        "bias": (d,),
    }
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator) * (scale if name == "key" else 1.0)
        values = values.abs() + 0.5 if name == "weight" else values
        around = torch.full((values.numel() + 4096,), torch.nan, dtype=mode.dtype, device=DEVICE)
        around[2048:-2048] = values.flatten().to(around)
        found[name] = around[2048:-2048].view(shape)
    return found


def masks(sizes: tuple[int, ...]) -> dict[str, Tensor]:
    entities, mentions, rows, columns, _ = sizes
    generator = torch.Generator().manual_seed(1)
    found = {
        "query_mask": torch.rand(entities, rows, generator=generator) < 0.6,
        "key_mask": torch.rand(mentions, columns, generator=generator) < 0.6,
    }
    for mask in found.values():
        mask[:, -1] = True
    return {name: mask.to(DEVICE) for name, mask in found.items()}


def call(x: dict[str, Tensor], function: Any = ops.g2l_scores, *args: Tensor, **options: Any) -> Tensor:
    norm = LayerNormWeights(x["weight"], x["bias"])
    result: Tensor = function(x["query"], x["key"], x["value"], x["gate"], norm, *args, **options)
    return result


def expected(x: dict[str, Tensor], **options: Any) -> Tensor:
    return call({name: t.double() for name, t in x.items()}, backend="reference", **options)


def assert_near(found: Tensor, wanted: Tensor, share: float) -> None:
    # of few scores the deviation may be small by chance
    torch.testing.assert_close(
        found.double(), wanted, rtol=0, atol=share * max(1.0, float(wanted.square().mean().sqrt()))
    )


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher allocates without filling it holds NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: _nan(empty(*a, **k)))


def _nan(tensor: Tensor) -> Tensor:
    return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_scores(sizes: tuple[int, ...], mode: str) -> None:
    x = case(sizes, MODES[mode])
    found = call(x, precision=MODES[mode].precision, backend="triton")
    assert found.dtype == MODES[mode].dtype
    assert_near(found, expected(x), MODES[mode].scores)


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
@pytest.mark.parametrize("sizes", WIDE, ids=str)
def test_more_tokens_than_a_tile_holds(sizes: tuple[int, ...], mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from m3el_fast.kernels import g2l

    x = case(sizes, MODES[mode])
    some = dict(zip(("mention", "entity"), pairs_of(sizes), strict=True))
    for limit in (g2l.WEIGHTS_BYTES, 1):  # column means of all mentions and of all tiles at once, and one by one
        monkeypatch.setattr(g2l, "WEIGHTS_BYTES", limit)
        assert_near(call(x, backend="triton"), expected(x), MODES[mode].scores)
        found = call(x, ops.g2l_pairs, *some.values(), backend="triton")
        assert_near(found, expected(x)[some["mention"], some["entity"]], MODES[mode].scores)


@pytest.mark.parametrize("mode", ["fp32", "fp32-bf16"])
@pytest.mark.parametrize(
    "sizes", [(5, 3, 4, 40, 96), (5, 3, 4, 50, 96), (67, 2, 3, 13, 20), (2, 2, 2, 300, 96)], ids=str
)
def test_masks(sizes: tuple[int, ...], mode: str) -> None:
    x, own = case(sizes, MODES[mode]), masks(sizes)
    assert_near(
        call(x, precision=MODES[mode].precision, backend="triton", **own), expected(x, **own), MODES[mode].scores
    )


def test_masked_tokens_are_not_read() -> None:
    sizes = (5, 3, 4, 40, 96)
    x, own = case(sizes, MODES["fp32"]), masks(sizes)
    wanted = [call(x, backend="triton", **own), *gradients(x, "triton", **own)]
    x["query"][~own["query_mask"]] = 1e15
    x["key"][~own["key_mask"]] = 1e15
    for found, before in zip([call(x, backend="triton", **own), *gradients(x, "triton", **own)], wanted, strict=True):
        assert torch.equal(found, before)


@pytest.mark.parametrize("mode", ["fp32", "fp32-bf16"])
@pytest.mark.parametrize("columns", [40, 300])
def test_rows(columns: int, mode: str) -> None:
    sizes = (7, 3, 2, columns, 96)
    x, own = case(sizes, MODES[mode]), masks(sizes)
    rows = torch.tensor([6, 0, 0, 3, 6], device=DEVICE)
    found = call(x, rows=rows, precision=MODES[mode].precision, backend="triton", **own)
    assert_near(found, expected(x, **own)[:, rows], MODES[mode].scores)


def test_bf16_query_with_fp32_keys() -> None:
    """As a KB is stored: the query's values count as they are."""
    x = case((5, 3, 2, 40, 96), MODES["fp32"])
    x["query"], x["gate"] = x["query"].bfloat16(), x["gate"].bfloat16()
    assert_near(call(x, backend="triton"), expected(x), MODES["fp32"].scores)


def pairs_of(sizes: tuple[int, ...], count: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    drawn = (torch.randint(0, sizes[i], (count,), generator=generator).to(DEVICE) for i in (1, 0))
    return next(drawn), next(drawn)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [(1, 1, 2, 1, 2), (9, 4, 2, 40, 96), (300, 2, 2, 13, 7)], ids=str)
def test_pairs(sizes: tuple[int, ...], mode: str) -> None:
    x = case(sizes, MODES[mode])
    own = masks(sizes)
    mention, entity = pairs_of(sizes, 150)
    mention[mention == 1] = 0  # one mention without pairs, one with more than a tile
    found = call(x, ops.g2l_pairs, mention, entity, precision=MODES[mode].precision, backend="triton", **own)
    assert_near(found, expected(x, **own)[mention, entity], MODES[mode].scores)


@pytest.mark.parametrize("columns", [4, 600])
def test_none_asked_for(columns: int) -> None:
    x, none = case((3, 2, 2, columns, 40), MODES["fp32"]), torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert call(x, ops.g2l_pairs, none, none, backend="triton").shape == (0,)
    assert call(x, rows=none, backend="triton").shape == (2, 0)


def within(context: str) -> Any:
    """Settings of the caller that must not reach the sums."""
    if context == "autocast":
        return torch.autocast(DEVICE, dtype=torch.bfloat16)
    return default_dtype(torch.float64 if context == "fp64 by default" else torch.bfloat16)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("columns", [13, 300])
def test_sums_stay_in_fp32(columns: int) -> None:
    x = case((5, 3, 2, columns, 40), MODES["fp32"])
    mention, entity = pairs_of((5, 3))

    def run() -> list[Tensor]:
        leaves = {name: t.detach().clone().requires_grad_() for name, t in x.items()}
        scores = call(leaves, backend="triton")
        scores.backward(x["value"].sum() * torch.ones_like(scores))
        pairs = call(x, ops.g2l_pairs, mention, entity, backend="triton")
        return [scores.detach(), pairs, *(t.grad for t in leaves.values() if t.grad is not None)]

    wanted = run()
    for context in ("autocast", "fp64 by default", "bf16 by default"):
        with within(context):
            found = run()
        assert len(found) == 8 and all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True)), context


def test_layouts_do_not_count() -> None:
    x = case((5, 3, 4, 13, 20), MODES["fp32"])
    wanted = call(x, backend="triton")
    strided = {
        name: t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t.repeat_interleave(2)[::2]
        for name, t in x.items()
    }
    assert not any(t.is_contiguous() for t in strided.values())
    assert torch.equal(call(strided, backend="triton"), wanted)


def test_extreme_logits() -> None:
    """Attention that is all on one token: no overflow, no NaN, forward and backward."""
    x = case((5, 3, 4, 40, 96), MODES["fp32"], scale=1e4)
    assert_near(call(x, backend="triton"), expected(x), MODES["fp32"].scores)
    for found in gradients(x, "triton"):
        assert found.isfinite().all()


@pytest.mark.parametrize("columns", [40, 50, 300])
def test_tied_logits(columns: int) -> None:
    """Equal keys share the attention equally."""
    x = case((5, 3, 2, columns, 96), MODES["fp32"])
    x["key"][:] = x["key"][:, :1].clone()
    assert_near(call(x, backend="triton"), expected(x), MODES["fp32"].scores)


def gradients(x: dict[str, Tensor], backend: str, precision: str = "fp32", **own: Any) -> list[Tensor]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in x.items()}
    scores = call(leaves, precision=precision, backend=backend, **own)
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3)).to(scores)
    scores.backward(weights)
    return [t.grad for t in leaves.values() if t.grad is not None]


def assert_gradients(x: dict[str, Tensor], mode: Mode, **own: Any) -> None:
    found = gradients(x, "triton", mode.precision, **own)
    wanted = gradients({name: t.double() for name, t in x.items()}, "reference", **own)
    assert len(found) == len(wanted) == 6
    for name, f, w in zip(x, found, wanted, strict=True):
        assert f.dtype == mode.dtype and f.isfinite().all()
        assert float((f.double() - w).norm() / w.norm()) < mode.gradient, name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", [s for s in SIZES if s[-1] > 2], ids=str)
def test_gradient(sizes: tuple[int, ...], mode: str) -> None:
    assert_gradients(case(sizes, MODES[mode]), MODES[mode])


@pytest.mark.parametrize("sizes", [(5, 2, 2, 300, 20), (2, 2, 2, 77, 130)], ids=str)
def test_gradient_with_more_tokens_than_a_tile_holds(sizes: tuple[int, ...]) -> None:
    assert_gradients(case(sizes, MODES["fp32"]), MODES["fp32"])
    assert_gradients(case(sizes, MODES["bf16"]), MODES["bf16"])


@pytest.mark.parametrize("mode", ["fp32", "fp32-bf16"])
@pytest.mark.parametrize("sizes", [(23, 3, 3, 40, 32), (5, 3, 3, 50, 96), (2, 2, 2, 300, 20)], ids=str)
def test_gradient_with_masks(sizes: tuple[int, ...], mode: str) -> None:
    assert_gradients(case(sizes, MODES[mode]), MODES[mode], **masks(sizes))


def test_gradient_in_parts_of_the_mentions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing changes but the order of sums when column means are held one mention at a time."""
    from m3el_fast.kernels import g2l_backward

    x = case((7, 5, 3, 40, 96), MODES["fp32"])
    whole = gradients(x, "triton")
    monkeypatch.setattr(g2l_backward, "WEIGHTS_BYTES", 1)
    for parts, once in zip(gradients(x, "triton"), whole, strict=True):
        torch.testing.assert_close(parts, once, rtol=1e-4, atol=1e-5)


def test_same_bits_at_every_run() -> None:
    x = case((19, 3, 2, 40, 32), MODES["fp32"])
    for first, second in zip(gradients(x, "triton"), gradients(x, "triton"), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(call(x, backend="triton"), call(x, backend="triton"))


def test_a_gradient_is_only_computed_where_wanted() -> None:
    x = case((3, 2, 2, 5, 8), MODES["fp32"])
    x["value"].requires_grad_()
    call(x, backend="triton").sum().backward()
    assert x["value"].grad is not None and x["query"].grad is None


def test_custom_ops() -> None:
    sizes = (5, 3, 2, 9, 16)
    x, own = case(sizes, MODES["fp32"]), masks(sizes)
    mention, entity = pairs_of(sizes)
    leaves = [t.clone().requires_grad_() for t in x.values()]
    plain = list(x.values())
    rows = torch.tensor([4, 0, 4], device=DEVICE)
    torch.library.opcheck(triton_g2l.scores, (*leaves, 1e-5, None, None, None, False))
    torch.library.opcheck(triton_g2l.scores, (*leaves, 1e-5, *own.values(), None, True))
    torch.library.opcheck(triton_g2l.scores, (*plain, 1e-5, None, None, rows, False))
    torch.library.opcheck(triton_g2l.pairs, (*plain, 1e-5, *own.values(), mention, entity, False))
    gradient = torch.ones(3, 5, device=DEVICE)
    torch.library.opcheck(triton_g2l.backward, (gradient, *plain, 1e-5, None, None, False))


def test_auto_takes_the_kernel_on_a_gpu(like_gpu: None) -> None:
    x = case((3, 2, 2, 5, 8), MODES["fp32"])
    assert torch.equal(call(x), call(x, backend="triton"))
    assert not torch.equal(call(x), call(x, backend="reference"))  # other sums: the comparison above can fail
    assert torch.equal(call(x, pooling="max"), call(x, pooling="max", backend="reference"))


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    x = case((3, 2, 2, 5, 8), MODES["fp32"])
    with pytest.raises(ValueError, match="backend 'triton': the kernel has no max pooling"):
        call(x, pooling="max", backend="triton")
    with pytest.raises(ValueError, match="takes fp32, bf16 and fp16, got torch\\.float64"):
        call({name: t.double() for name, t in x.items()}, backend="triton")
    with pytest.raises(ValueError, match="takes no empty tensors"):
        call(x | {"query": x["query"][:0], "gate": x["gate"][:0]}, backend="triton")
    with pytest.raises(ValueError, match="up to 1024 mention tokens, got 1025"):
        call(case((1, 1, 1, 1025, 2), MODES["fp32"]), backend="triton")
    rows = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    leaves = x | {"query": x["query"].clone().requires_grad_()}
    with pytest.raises(ValueError, match="no gradient"):
        call(leaves, rows=rows, backend="triton")
    with pytest.raises(ValueError, match="no gradient"):
        call(leaves, ops.g2l_pairs, rows, rows, backend="triton")
    for name, mask in masks((3, 2, 2, 5, 8)).items():
        for backend in ("triton", "reference"):
            with pytest.raises(ValueError, match=f"{name}: expected bool, got torch\\.int64"):
                call(x, backend=backend, **{name: mask.long()})
    (first,) = torch.autograd.grad(call(leaves, backend="triton").square().sum(), leaves["query"], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.sum().backward()
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    with pytest.raises(ValueError, match="takes CUDA tensors, got cpu"):
        call({name: t.cpu() for name, t in x.items()}, backend="triton")
    monkeypatch.setattr(gpu, "MISSING", "triton is not installed")
    with pytest.raises(ValueError, match="backend 'triton': triton is not installed"):
        call(x, backend="triton")
