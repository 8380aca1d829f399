"""What GPU benchmarks are made of: sizes, cases that are made when their turn comes, and how results are checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.scales import LT, LV, WIKIMEL_ENTITIES, WIKIMEL_MENTIONS

OURS = "ours"
EAGER, COMPILED, PAPER = "eager", "torch.compile", "eager, the paper's form"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SASS = {"fp32": "TF32", "bf16": "BF16"}
LENGTHS = {"text": LT, "image": LV}
# Relative error, Frobenius norm, of results and gradients. fp32: sums of tf32x3 products, whose relative error is about
# 2^-21, in an order of their own. bf16: operands and results rounded to 2^-9 at logits of up to 1 / 0.03.
TOLERANCE = {"fp32": 2e-4, "bf16": 5e-2}
# Peers also round what lies between: 0.7% at small sizes in bf16, and sums grow with the size.
PEER_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}

Call = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """Of one ``--scale``.

    Attributes:
        entities, mentions, images: of a scan; loss_batches: of ``icl_loss``; batches: of in-batch ``g2l_scores``.
        contexts: of ``cross_modal_context`` forward; slice: mentions and entities on which the paper's form is timed.
        checked: rows that are compared with the reference.
        selections: rows, columns and k of top-k; rerank: mentions and candidates of each.
    """

    entities: int
    mentions: int
    images: int
    loss_batches: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: int
    slice: tuple[int, int]
    checked: int
    selections: tuple[tuple[int, int, int], ...]
    rerank: tuple[int, int]


TINY = Sizes(70, 5, 66, (40,), (5,), 20, (2, 3), 5, ((7, 130, 10), (1, 3_000, 20)), (3, 11))
PAPER_SIZES = Sizes(
    WIKIMEL_ENTITIES,
    WIKIMEL_MENTIONS,
    images=67_085,
    loss_batches=(4_096, 32_768),
    batches=(128, 1_024),
    contexts=109_976,
    slice=(64, 1_000),
    checked=96,
    selections=((4_096, WIKIMEL_ENTITIES, 10), (512, 131_072, 100), (1, 10_000_000, 100)),
    rerank=(1_024, 1_000),
)


@dataclass(frozen=True)
class Setting:
    """What cases are made from: the device, and by kind of model and entities the folder of a synthetic index and the
    file of the scores that the reference gives the first mentions on it."""

    device: str
    index: Callable[[str, int], str]
    expected: Callable[[str, int], str]


@dataclass(frozen=True)
class Case:
    """One computation at one size, with its operands.

    Attributes:
        calls: by form: peers, then ``OURS``.
        check: facts of a form's result, such as its ``error`` against the reference; raises AssertionError.
        items, unit: how many of what a call works on; slices: of peers whose memory forces a slice.
        limit: least seconds of our call by :mod:`bench.roofline`; flop, moved: what the computation needs, counted:
            FLOP of products, and bytes of every input and output once.
        bars: as of :meth:`bench.measure.Measure.record`, peers by form, and ``memory x PEER``: so many times less.
    """

    calls: Mapping[str, Call]
    check: Callable[[str, Any], Mapping[str, object]]
    items: int
    unit: str
    slices: Mapping[str, int] = field(default_factory=dict)
    limit: float | None = None
    flop: float | None = None
    moved: float | None = None
    bars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A case to be made: its name, forms (peers, then ``OURS``) and how."""

    name: str
    peers: tuple[str, ...]
    make: Callable[[Setting], Case]

    @property
    def forms(self) -> tuple[str, ...]:
        return (*self.peers, OURS)


class Cases:
    """The cases of a file by name, of which the last one is held."""

    def __init__(self, plans: list[Plan], setting: Setting) -> None:
        self._plans = {plan.name: plan for plan in plans}
        self._setting = setting
        self._name = ""
        self._case: Case | None = None

    def get(self, name: str) -> Case:
        if name != self._name or self._case is None:
            self._name, self._case = name, None  # frees the other one's operands first
            if self._setting.device == "cuda":
                torch.cuda.empty_cache()
            plan = self._plans[name]
            case = plan.make(self._setting)
            assert tuple(case.calls) == plan.forms, f"{name}: expected {plan.forms}, got {tuple(case.calls)}"
            self._case = case
        return self._case


def forward(function: Callable[..., Any], *operands: Any, **options: Any) -> Call:
    """The call without gradients."""

    def run() -> Any:
        with torch.no_grad():
            return function(*operands, **options)

    return run


def step(loss: Callable[..., Tensor], operands: list[Tensor]) -> Callable[[], list[Tensor]]:
    """The call of a scalar of ``operands`` and its gradients by them."""

    def run() -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in operands]
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value, leaves)]

    return run


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compiled for the shapes with which it is first called."""
    torch._dynamo.reset()
    result: Callable[..., Tensor] = torch.compile(function, dynamic=False)
    return result


def with_gradients(function: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
    """A function's result, and the gradients of its operands for a fixed upstream one."""
    leaves = [t.detach().requires_grad_() for t in operands]
    result = function(*leaves)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(11)).to(result)
    return [result.detach(), *torch.autograd.grad(result, leaves, upstream)]


def differentiated(
    ours: Callable[..., Tensor], exact: Callable[..., Tensor], operands: list[Tensor], bound: float
) -> float:
    """Largest relative error of result and gradients against ``exact`` in fp64, asserted to be at most ``bound``."""
    return within(with_gradients(ours, operands), with_gradients(exact, [t.double() for t in operands]), bound)


def within(found: list[Tensor], exact: list[Tensor], bound: float) -> float:
    """Largest relative error, Frobenius norm, asserted to be at most ``bound``."""
    pairs = list(zip(found, exact, strict=True))
    errors = [float((x.double() - y).norm() / y.norm()) for x, y in pairs]
    for i, error in enumerate(errors):
        assert error <= bound, f"tensor {i}: relative error {error:.2e} against the reference, at most {bound:.0e}"
    return max(errors)


def bound(form: str, dtype: str) -> float:
    return (TOLERANCE if form == OURS else PEER_TOLERANCE)[dtype]
