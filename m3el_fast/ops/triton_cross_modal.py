"""The Triton kernels of cross-modal contexts as custom ops: their fake tensors and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops import gpu
from m3el_fast.ops.gradients import register_gradient
from m3el_fast.ops.reference import HEAD_TEMPERATURES

_TENSORS = 10  # glob, local and eight weights: what has a gradient, first among the op's arguments


@torch.library.custom_op("m3el_fast::triton_cross_modal_context", mutates_args=())
def context(
    glob: Tensor,
    local: Tensor,
    u_weight: Tensor,
    u_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fusion_weight: Tensor | None,
    fusion_bias: Tensor | None,
    head_weight: Tensor,
    lam: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from m3el_fast.kernels import cross_modal

    weights = cross_modal.Weights(
        u_weight, u_bias, gate_weight, gate_bias, norm_weight, norm_bias, fusion_weight, fusion_bias, head_weight
    )
    temperatures = HEAD_TEMPERATURES[head_weight.shape[0]]
    with gpu.launches(glob):
        result: tuple[Tensor, Tensor, Tensor] = cross_modal.context(glob, local, weights, temperatures, lam, eps)
    return result


@context.register_fake
def _(glob: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    n, d = glob.shape
    parts = 1 if others[7] is None else 2  # fusion_weight
    fp32 = torch.float32
    return glob.new_empty(n, d), glob.new_empty(parts, n, d, dtype=fp32), glob.new_empty(2, n, dtype=fp32)


@torch.library.custom_op("m3el_fast::triton_cross_modal_backward", mutates_args=())
def backward(
    gradient: Tensor,
    kept: Tensor,
    stats: Tensor,
    glob: Tensor,
    local: Tensor,
    u_weight: Tensor,
    u_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    fusion_weight: Tensor | None,
    fusion_bias: Tensor | None,
    head_weight: Tensor,
    lam: float,
    eps: float,
) -> list[Tensor]:
    from m3el_fast.kernels import cross_modal, cross_modal_backward

    weights = cross_modal.Weights(
        u_weight, u_bias, gate_weight, gate_bias, norm_weight, norm_bias, fusion_weight, fusion_bias, head_weight
    )
    temperatures = HEAD_TEMPERATURES[head_weight.shape[0]]
    with gpu.launches(glob):
        found: list[Tensor] = cross_modal_backward.gradients(
            gradient, kept, stats, glob, local, weights, temperatures, lam, eps
        )
    return found


@backward.register_fake
def _(gradient: Tensor, kept: Tensor, stats: Tensor, *others: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in others[:_TENSORS] if x is not None]


register_gradient("triton_cross_modal_context", "triton_cross_modal_backward", "cross_modal_context")
