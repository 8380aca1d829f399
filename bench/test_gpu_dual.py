"""MIMIC's dual-gated scores of all mentions and all distinct images on a GPU, and a batch's forward and backward."""

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
from bench.gpu_weights import dual_weights
from bench.roofline import limits
from bench.scales import DV
from m3el_fast import ops
from m3el_fast.ops import DualConstants, reference

pytestmark = MARKS


def plans(sizes: Sizes) -> Iterator[Plan]:
    name = f"dual_scores, {sizes.mentions:,} x {sizes.images:,}, fp32"
    yield Plan(name, (PAPER, EAGER, COMPILED), partial(_scores, sizes))
    batch = max(sizes.batches)
    name = f"dual_scores forward + backward, B = {batch:,}, fp32"
    yield Plan(name, (EAGER,), partial(_training, batch, sizes.checked))


def test_dual(name: str, form: str, gpu_cases: Cases, gpu_measure: GPUMeasure) -> None:
    gpu_measure.form(name, gpu_cases.get(name), form)


def _scores(sizes: Sizes, setting: Setting) -> Case:
    a, k, v = _features(sizes.mentions, sizes.images, setting)
    source, target, constants = _packed(a, k, v, setting)
    few_m, few_e = min(sizes.slice[0], sizes.mentions), min(sizes.slice[1], sizes.images)
    exact = reference.dual_scores(
        source[: sizes.checked].double(), target[: sizes.checked].double(), _double(constants)
    )

    def check(form: str, result: Tensor) -> dict[str, object]:
        """The scores of the first mentions and images."""
        m, e = (min(of, len(exact)) for of in result.shape)
        return {"error": within([result[:m, :e]], [exact[:m, :e]], bound(form, "fp32"))}

    pairs = sizes.mentions * sizes.images
    flop, moved = 10.0 * DV * pairs, 4.0 * (source.numel() + target.numel() + pairs)
    return Case(
        {
            PAPER: forward(reference.dual_scores_paper, a[:few_m], k[:few_e], v[:few_e], dual_weights(setting.device)),
            EAGER: forward(reference.dual_scores, source, target, constants),
            COMPILED: forward(compiled(reference.dual_scores), source, target, constants),
            OURS: forward(_triton, source, target, constants),
        },
        check,
        pairs,
        "pairs",
        slices={PAPER: few_m * few_e},
        limit=max(limits(0.0, flop, moved, "TF32").values()),
        flop=flop,
        moved=moved,
    )


def _training(batch: int, checked: int, setting: Setting) -> Case:
    source, target, constants = _packed(*_features(batch, batch, setting), setting)
    few, wide = source[:checked], _double(constants)
    # all rows of the other side bear on a row's gradient
    [_, exact, _] = step(lambda s, t: reference.dual_scores(s, t, wide).sum(), [few.double(), target.double()])()

    def check(form: str, result: list[Tensor]) -> dict[str, object]:
        """Gradients of the first sources; of ours, scores and gradients of a smaller batch too."""
        error = within([result[1][:checked]], [exact], bound(form, "fp32"))
        if form == OURS:
            error = max(
                error,
                differentiated(
                    lambda s, t: _triton(s, t, constants),
                    lambda s, t: reference.dual_scores(s, t, wide),
                    [few, target[:checked]],
                    TOLERANCE["fp32"],
                ),
            )
        return {"error": error}

    return Case(
        {
            EAGER: step(lambda s, t: reference.dual_scores(s, t, constants).sum(), [source, target]),
            OURS: step(lambda s, t: _triton(s, t, constants).sum(), [source, target]),
        },
        check,
        batch * batch,
        "pairs",
    )


def _features(mentions: int, images: int, setting: Setting) -> list[Tensor]:
    """a [M, d] of the mentions, k and v [U, d] of the images."""
    g = torch.Generator(setting.device).manual_seed(4)
    return [torch.randn(rows, DV, generator=g, device=setting.device) for rows in (mentions, images, images)]


def _packed(a: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor, DualConstants]:
    weights = dual_weights(setting.device)
    return ops.dual_source(a, weights), ops.dual_target(k, v, weights), ops.dual_constants(weights)


def _double(constants: DualConstants) -> DualConstants:
    return constants._replace(gate=constants.gate.double(), bias=constants.bias.double())


def _triton(source: Tensor, target: Tensor, constants: DualConstants) -> Tensor:
    return ops.dual_scores(source, target, constants, backend="triton")
