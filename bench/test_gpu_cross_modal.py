"""Contexts of a whole KB on a GPU, and a batch's forward and backward, in both forms of the cross-modal unit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.gpu_cases import (
    COMPILED,
    EAGER,
    OURS,
    PAPER,
    TOLERANCE,
    Case,
    Cases,
    Plan,
    Setting,
    Sizes,
    bound,
    compiled,
    differentiated,
    forward,
    step,
    within,
)
from bench.gpu_device import MARKS
from bench.gpu_timing import GPUMeasure
from bench.gpu_weights import cross_weights, double
from bench.roofline import limits
from bench.scales import DV, LV
from m3el_fast import ops
from m3el_fast.ops import CrossModalWeights, reference

pytestmark = MARKS

_FORMS = {"bidirectional form": False, "T2V-only form": True}  # the latter has a fusion


def plans(sizes: Sizes) -> Iterator[Plan]:
    batch = max(sizes.batches)
    for form, fused in _FORMS.items():
        name = f"cross_modal_context of {sizes.contexts:,}, {form}, fp32"
        yield Plan(name, (PAPER, EAGER, COMPILED), partial(_contexts, sizes.contexts, fused, sizes.checked))
        name = f"cross_modal_context forward + backward of {batch:,}, {form}, fp32"
        yield Plan(name, (EAGER,), partial(_training, batch, fused, sizes.checked))


def test_cross_modal(name: str, form: str, gpu_cases: Cases, gpu_measure: GPUMeasure) -> None:
    gpu_measure.form(name, gpu_cases.get(name), form)


def _contexts(contexts: int, fused: bool, checked: int, setting: Setting) -> Case:
    weights, (glob, local) = cross_weights(setting.device, fused), _operands(contexts, setting)
    exact = reference.cross_modal_context(glob[:checked].double(), local[:checked].double(), double(weights))

    def check(form: str, result: Tensor) -> dict[str, object]:
        return {"error": within([result[:checked]], [exact], bound(form, "fp32"))}

    flop = 2.0 * contexts * DV * ((5 if fused else 3) * DV + 2 * LV)
    moved = 4.0 * (local.numel() + 2 * glob.numel())
    return Case(
        {
            PAPER: forward(reference.cross_modal_context_paper, glob, local, weights),
            EAGER: forward(reference.cross_modal_context, glob, local, weights),
            COMPILED: forward(compiled(reference.cross_modal_context), glob, local, weights),
            OURS: forward(_triton, glob, local, weights),
        },
        check,
        contexts,
        "contexts",
        limit=max(limits(0.0, flop, moved, "TF32").values()),
        flop=flop,
        moved=moved,
    )


def _training(batch: int, fused: bool, checked: int, setting: Setting) -> Case:
    weights, operands = cross_weights(setting.device, fused), _operands(batch, setting)
    few = [t[:checked] for t in operands]
    exact = step(lambda g, x: reference.cross_modal_context(g, x, double(weights)).sum(), [t.double() for t in few])()

    def check(form: str, result: list[Tensor]) -> dict[str, object]:
        """Gradients of the first; of ours, contexts and gradients for another upstream gradient too."""
        error = within([t[:checked] for t in result[1:]], exact[1:], bound(form, "fp32"))
        if form == OURS:
            wide = double(weights)
            error = max(
                error,
                differentiated(
                    lambda g, x: _triton(g, x, weights),
                    lambda g, x: reference.cross_modal_context(g, x, wide),
                    few,
                    TOLERANCE["fp32"],
                ),
            )
        return {"error": error}

    return Case(
        {
            EAGER: step(lambda g, x: reference.cross_modal_context(g, x, weights).sum(), operands),
            OURS: step(lambda g, x: _triton(g, x, weights).sum(), operands),
        },
        check,
        batch,
        "contexts",
    )


def _operands(count: int, setting: Setting) -> list[Tensor]:
    """Global features [count, d], and local ones [count, Lv, d]."""
    g = torch.Generator(setting.device).manual_seed(3)
    shapes = (count, DV), (count, LV, DV)
    return [torch.randn(*shape, generator=g, device=setting.device) for shape in shapes]


def _triton(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> Tensor:
    return ops.cross_modal_context(glob, local, weights, backend="triton")
