"""The native contrastive losses against the reference in fp64, at every level that this machine has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import native, native_losses
from native_levels import randn, train

pytestmark = pytest.mark.skipif(bool(native.MISSING), reason="the native extension is not built")

LOSSES: dict[str, Callable[..., Tensor]] = {
    "paper": partial(ops.icl_loss, tau=0.1, beta=0.6, gamma=1.2),
    "released": partial(ops.icl_loss, tau=0.1, beta=0.6, gamma=1.2, variant="released"),
    "no-own-side": partial(ops.icl_loss, tau=0.1, beta=0.0),
    "no-other-side": partial(ops.icl_loss, tau=0.1, gamma=0.0),
    "mclet": lambda a, b, **more: ops.mclet_loss(0.3 * a, 0.3 * b, **more),
}
# Largest found: 2e-6. A logit of 1/tau = 10 rounds by 1e-6, and so do its weight and the loss.
NEAR = 1e-5


def rows(batch: int, d: int) -> list[Tensor]:
    mention = randn(batch, d, seed=1)
    return [randn(batch, d, seed=2) + 0.5 * mention, mention]


def duplicates_of(kind: str, batch: int) -> Tensor | None:
    if kind == "ids":
        return torch.randint(max(1, batch // 3), (batch,), generator=torch.Generator().manual_seed(3)) - 2
    return randn(batch, batch, seed=4) > 0.7 if kind == "pairs" else None


def with_gradients(loss: Callable[..., Tensor], tensors: list[Tensor], **more: Any) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = loss(*leaves, **more)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def close(found: list[Tensor], exact: list[Tensor], share: float = NEAR) -> None:
    """The loss within ``share``, the gradients within ``share`` of their norms, or of 1 / rows where they vanish."""
    for a, b in zip(found, exact, strict=True):
        assert a.shape == b.shape
        size = 1.0 if b.dim() == 0 else max(1 / len(b), float(b.norm()))
        assert float((a.double() - b).norm()) <= share * max(1.0, float(b.norm()) if b.dim() == 0 else 0.0) * size


def exact_of(loss: Callable[..., Tensor], tensors: list[Tensor], **more: Any) -> list[Tensor]:
    return with_gradients(loss, [t.double() for t in tensors], backend="reference", **more)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (13, 16), (65, 5), (97, 40), (211, 33)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients(level: str, size: tuple[int, int], name: str) -> None:
    tensors = rows(*size)
    close(with_gradients(LOSSES[name], tensors, backend="native"), exact_of(LOSSES[name], tensors))


@pytest.mark.parametrize("kind", ["ids", "pairs"])
@pytest.mark.parametrize("name", ["paper", "released", "mclet"])
def test_duplicates(level: str, kind: str, name: str) -> None:
    for batch in (2, 31, 150):
        tensors, more = rows(batch, 12), {"duplicates": duplicates_of(kind, batch)}
        found = with_gradients(LOSSES[name], tensors, backend="native", **more)
        close(found, exact_of(LOSSES[name], tensors, **more))


@pytest.mark.parametrize("kind", ["none", "ids", "pairs"])
@pytest.mark.parametrize("anchors", [range(0, 1), range(40, 110), range(100, 149), range(3, 149)], ids=str)
def test_anchors(level: str, kind: str, anchors: range) -> None:
    """Their losses, and the gradients of all rows, which are their candidates."""
    tensors, more = rows(149, 12), {"duplicates": duplicates_of(kind, 149), "anchors": anchors}
    for name in ("paper", "released"):
        found = with_gradients(LOSSES[name], tensors, backend="native", **more)
        close(found, exact_of(LOSSES[name], tensors, **more))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(level: str, dtype: torch.dtype) -> None:
    tensors = [t.to(dtype) for t in rows(35, 24)]
    found = with_gradients(LOSSES["paper"], tensors, backend="native")
    assert [t.dtype for t in found] == [torch.float32, dtype, dtype]
    exact = exact_of(LOSSES["paper"], tensors)
    close(found[:1], exact[:1])
    close(found[1:], exact[1:], 4e-3)  # gradients rounded to the features' digits, bf16: 2^-9
    one = with_gradients(LOSSES["paper"], [tensors[0], tensors[1].float()], backend="native")
    assert [t.dtype for t in one] == [torch.float32, dtype, torch.float32]


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15], ids=str)
@pytest.mark.parametrize("tau", [1e-4, 1e4], ids=str)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_extreme_features_and_temperatures(level: str, scale: float, tau: float, variant: str) -> None:
    """Logits of 1e4 round by 1e-3: what is compared is finite values and the loss."""
    loss = partial(ops.icl_loss, tau=tau, variant=variant)
    tensors = [scale * t for t in rows(70, 9)]
    found, exact = with_gradients(loss, tensors, backend="native"), exact_of(loss, tensors)
    assert all(t.isfinite().all() for t in found)
    assert float(found[0]) == pytest.approx(float(exact[0]), rel=1e-5, abs=1e-5)


def test_rows_shorter_than_eps_have_the_references_gradient(level: str) -> None:
    tensors = rows(9, 5)
    tensors[0][4] = 0
    tensors[1][6] *= 1e-14
    close(with_gradients(LOSSES["paper"], tensors, backend="native"), exact_of(LOSSES["paper"], tensors))


def test_a_loss_near_zero_is_exact(level: str) -> None:
    """As a sum of e^-45 beside the positive's 1 it is below fp32; of e^-8 it keeps its digits."""
    entity = torch.eye(6)
    assert float(ops.icl_loss(entity, entity, tau=1 / 45, backend="native")) <= 1e-7
    found = ops.icl_loss(entity, entity, tau=1 / 8, backend="native")
    exact = ops.icl_loss(entity.double(), entity.double(), tau=1 / 8)
    assert float(found) == pytest.approx(float(exact), rel=1e-3)  # of 3e-3; the sum is 1.003, rounded by 1e-7


def test_missing_numbers_stay_missing(level: str) -> None:
    tensors = rows(70, 9)
    tensors[1][3, 2] = torch.nan
    assert ops.icl_loss(*tensors, backend="native").isnan()


def test_results_do_not_depend_on_the_threads(level: str) -> None:
    """At a width of the papers; of odd ones torch.mm itself may differ in the last bit."""
    tensors, more = rows(301, 96), {"duplicates": duplicates_of("ids", 301), "backend": "native"}
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(with_gradients(LOSSES["paper"], tensors, **more))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_products_are_kept_or_computed_again_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = rows(200, 16)
    kept = with_gradients(LOSSES["paper"], tensors, backend="native")
    monkeypatch.setattr(native_losses, "_MOST_KEPT", 0)
    again = with_gradients(LOSSES["paper"], tensors, backend="native")
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    with torch.no_grad():
        assert torch.equal(LOSSES["paper"](*tensors, backend="native"), kept[0])


PEAK = """
import resource, torch
from m3el_fast import ops
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def step(b):
    e, m = torch.randn(b, 8, requires_grad=True), torch.randn(b, 8, requires_grad=True)
    ops.icl_loss(e, m, backend="native").backward()
step(64)
before = peak()
step(4000)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_pairs() -> None:
    """One B x B matrix of a batch of 4,000 is 64 MB; two blocks of 128 x 8,000 are 8 MB."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000  # KB


def test_autocast_does_not_round_the_products() -> None:
    tensors = rows(40, 16)
    plain = with_gradients(LOSSES["paper"], tensors, backend="native")
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(LOSSES["paper"], tensors, backend="native")
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    entity, mention = rows(20, 6)
    entity.requires_grad_()
    ops.icl_loss(entity, mention, backend="native").backward()
    assert entity.grad is not None and mention.grad is None


def test_gradcheck(level: str) -> None:
    """Central differences of an fp32 loss, whose rounding (1e-7) over the step leaves 1e-5."""
    tensors = [t.requires_grad_() for t in rows(5, 4)]
    with pytest.warns(UserWarning, match="not a double precision"):
        assert torch.autograd.gradcheck(
            lambda *x: ops.icl_loss(*x, tau=1.0, backend="native"), tensors, eps=1e-2, atol=1e-3, rtol=1e-2
        )


def test_refusals() -> None:
    entity, mention = (t.requires_grad_() for t in rows(5, 4))
    with pytest.raises(ValueError, match="'native': the kernel has no loss without terms of the same side"):
        ops.infonce_loss(entity, mention, backend="native")
    with pytest.raises(ValueError, match=r"'native': the kernel takes fp32, bf16 and fp16, got torch\.float64"):
        ops.icl_loss(entity.double(), mention, backend="native")
    with pytest.raises(ValueError, match="'native': the kernel takes no empty tensors"):
        ops.icl_loss(entity[:, :0], mention[:, :0], backend="native")
    first = torch.autograd.grad(ops.icl_loss(entity, mention, backend="native"), [entity], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first[0].sum().backward()
    terms = (2.0, 1.0, 2.0, 1.0, False, None, None, None)
    op = torch.ops.m3el_fast.contrastive_sums
    with pytest.raises(RuntimeError, match="products: expected the rows of up to 128 anchors"):
        op(torch.ones(3, 9), 0, 5, 5, *terms, torch.zeros(10), torch.zeros(10))
    with pytest.raises(RuntimeError, match="peak: expected size 10 in dimension 0, got 9"):
        op(torch.ones(3, 10), 0, 5, 5, *terms, torch.zeros(9), torch.zeros(10))


@pytest.mark.parametrize("kind", ["none", "ids", "pairs"])
def test_opcheck(kind: str) -> None:
    check, named = torch.library.opcheck, torch.ops.m3el_fast
    tensors, duplicates, terms = rows(9, 6), duplicates_of(kind, 9), (2.0, 1.0, 2.0, 0.7, True)
    leaves = [t.requires_grad_() for t in tensors]
    check(named.native_contrastive.default, (*leaves, duplicates, 2, 7, *terms, True, True))
    made = native_losses.contrastive(*leaves, duplicates, 2, 7, *terms, True, True)
    assert [t.requires_grad for t in made] == [True, False, False, False]  # what is kept has no gradient
    plain = [t.detach() for t in tensors]
    arguments = (torch.tensor(1.0), *made[1:], *plain, duplicates, 2, 7, *terms, True, True)
    check(named.native_contrastive_backward.default, arguments)
    gold = torch.arange(18) if kind == "ids" else None
    pairs = (duplicates, duplicates) if kind == "pairs" else (None, None)
    block = (randn(5, 18), 0, 5, 9, *terms, gold, *pairs)
    check(named.contrastive_sums.default, (*block, torch.zeros(18), torch.zeros(18)))
    check(named.contrastive_coefficients.default, (*block, torch.ones(18), torch.empty(5, 18)))


def trained(backend: str, compiled: bool = False) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Linear(12, 8)

    def loss(entity: Tensor, mention: Tensor) -> Tensor:
        return ops.icl_loss(model(entity), model(mention), tau=0.3, backend=backend)  # type: ignore[arg-type]

    step = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    mention = randn(40, 12, seed=1)
    entity = mention + randn(40, 12, seed=2, scale=0.3)
    return train(lambda: step(entity, mention), optimizer)


def test_training_repeats_the_reference(level: str) -> None:
    found, expected = trained("native"), trained("reference")
    assert expected[-1] < 0.8 * expected[0]
    assert found == pytest.approx(expected, rel=1e-3)


def test_compiled_training_without_a_graph_break() -> None:
    assert trained("auto", compiled=True) == pytest.approx(trained("native"), rel=1e-5)
