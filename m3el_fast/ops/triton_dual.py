"""The Triton kernels of MIMIC's dual-gated scores as custom ops: their fake tensors and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops import gpu
from m3el_fast.ops.gradients import register_gradient


@torch.library.custom_op("m3el_fast::triton_dual_scores", mutates_args=())
def scores(source: Tensor, target: Tensor, gate: Tensor, bias: Tensor, eps1: float, eps2: float) -> Tensor:
    from m3el_fast.kernels import dual

    with gpu.launches(source):
        result: Tensor = dual.scores(source, target, gate, bias, eps1, eps2)
    return result


@scores.register_fake
def _(source: Tensor, target: Tensor, *others: Any) -> Tensor:
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
def _(gradient: Tensor, *others: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in others[:4]]  # source to bias


register_gradient("triton_dual_scores", "triton_dual_backward", "dual_scores")
