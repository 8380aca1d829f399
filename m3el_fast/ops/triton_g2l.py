"""The Triton kernels of global-to-local scores as custom ops: their fake tensors and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops import gpu

_TENSORS = 6  # query, key, value, gate, norm_weight, norm_bias: what has a gradient, first among the op's arguments


@torch.library.custom_op("m3el_fast::triton_g2l_scores", mutates_args=())
def scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    rows: Tensor | None,
    bf16: bool,
) -> Tensor:
    from m3el_fast.kernels import g2l, g2l_operands

    with gpu.launches(key):
        operands = g2l_operands.operands(
            query, key, value, gate, norm_weight, norm_bias, eps, query_mask, key_mask, bf16, rows
        )
        found: Tensor = g2l.scores(operands, rows, key.dtype)
    return found


@scores.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    rows: Tensor | None,
    bf16: bool,
) -> Tensor:
    return key.new_empty(key.shape[0], query.shape[0] if rows is None else rows.shape[0])


@torch.library.custom_op("m3el_fast::triton_g2l_pairs", mutates_args=())
def pairs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    mention: Tensor,
    entity: Tensor,
    bf16: bool,
) -> Tensor:
    from m3el_fast.kernels import g2l, g2l_operands

    with gpu.launches(key):
        operands = g2l_operands.operands(
            query, key, value, gate, norm_weight, norm_bias, eps, query_mask, key_mask, bf16
        )
        found: Tensor = g2l.pairs(operands, mention, entity, key.dtype)
    return found


@pairs.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    mention: Tensor,
    entity: Tensor,
    bf16: bool,
) -> Tensor:
    return key.new_empty(mention.shape[0])


@torch.library.custom_op("m3el_fast::triton_g2l_backward", mutates_args=())
def backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    bf16: bool,
) -> list[Tensor]:
    from m3el_fast.kernels import g2l_backward

    with gpu.launches(key):
        found: list[Tensor] = g2l_backward.gradients(
            gradient, query, key, value, gate, norm_weight, norm_bias, eps, query_mask, key_mask, bf16
        )
    return found


@backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    bf16: bool,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in (query, key, value, gate, norm_weight, norm_bias)]


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, eps, query_mask, key_mask, rows, bf16 = inputs
    if rows is not None:
        raise NotImplementedError("g2l_scores: no gradient with rows, index query and gate instead")
    ctx.save_for_backward(*tensors, query_mask, key_mask)
    ctx.eps, ctx.bf16 = eps, bf16


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, query_mask, key_mask = ctx.saved_tensors
    found = backward(gradient.contiguous(), *tensors, ctx.eps, query_mask, key_mask, ctx.bf16)
    wanted = ctx.needs_input_grad[:_TENSORS]
    gradients = [g if w else None for g, w in zip(found, wanted, strict=True)]
    return (*gradients, *[None] * (len(ctx.needs_input_grad) - _TENSORS))


def _no_second(ctx: Any, *gradients: Any) -> None:
    raise NotImplementedError("g2l_scores: no second derivative, backend 'reference' has it")


torch.library.register_autograd("m3el_fast::triton_g2l_scores", _backward, setup_context=_keep_operands)
torch.library.register_autograd("m3el_fast::triton_g2l_backward", _no_second)
