"""The Triton kernels of MIMIC's dual-gated scores as custom ops: their fake tensors and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops import gpu


@torch.library.custom_op("m3el_fast::triton_dual_scores", mutates_args=())
def scores(source: Tensor, target: Tensor, gate: Tensor, bias: Tensor, eps1: float, eps2: float) -> Tensor:
    from m3el_fast.kernels import dual

    with gpu.launches(source):
        result: Tensor = dual.scores(source, target, gate, bias, eps1, eps2)
    return result


@scores.register_fake
def _(source: Tensor, target: Tensor, gate: Tensor, bias: Tensor, eps1: float, eps2: float) -> Tensor:
    return source.new_empty(source.shape[0], target.shape[0])


@torch.library.custom_op("m3el_fast::triton_dual_backward", mutates_args=())
def backward(
    gradient: Tensor, source: Tensor, target: Tensor, gate: Tensor, bias: Tensor, eps1: float, eps2: float
) -> list[Tensor]:
    from m3el_fast.kernels import dual_backward

    with gpu.launches(source):
        found: list[Tensor] = dual_backward.gradients(gradient, source, target, gate, bias, eps1, eps2)
    return found


@backward.register_fake
def _(
    gradient: Tensor, source: Tensor, target: Tensor, gate: Tensor, bias: Tensor, eps1: float, eps2: float
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (source, target, gate, bias)]


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps1, ctx.eps2 = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return (*backward(gradient, *ctx.saved_tensors, ctx.eps1, ctx.eps2), None, None)


def _no_second(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("dual_scores: no second derivative, backend 'reference' has it")


torch.library.register_autograd("m3el_fast::triton_dual_scores", _backward, setup_context=_keep_operands)
torch.library.register_autograd("m3el_fast::triton_dual_backward", _no_second)
