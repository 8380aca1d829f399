"""The gradient of ``torch.ops.m3el_fast.g2l_scores``; importing this module registers it.

Nothing but the operands is kept for the backward pass: ``torch.ops.m3el_fast.g2l_backward`` computes the attention
again, a mention and a few entities at a time, so that memory grows with the number of entities and of mentions, not
with that of their pairs. With ``bf16`` the gradient is that of the unrounded scores (rounding counts as the identity),
computed from products of bf16 operands as the scores are; the context vector, its LayerNorm and the gradients of value,
gate and norm are in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops.native import MISSING

_TENSORS = 6  # query, key, value, gate, norm_weight, norm_bias: what has a gradient, first among the op's arguments


def _fake(
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
) -> tuple[Tensor, ...]:
    return tuple(key.new_empty(x.shape) for x in (query, key, value, gate, norm_weight, norm_bias))


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, eps, query_mask, key_mask, rows, bf16 = inputs
    if rows is not None:
        raise NotImplementedError("g2l_scores: no gradient with rows, index query and gate instead")
    ctx.save_for_backward(*tensors, query_mask, key_mask)
    ctx.eps, ctx.bf16 = eps, bf16


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, query_mask, key_mask = ctx.saved_tensors
    found = torch.ops.m3el_fast.g2l_backward(gradient.contiguous(), *tensors, ctx.eps, query_mask, key_mask, ctx.bf16)
    wanted = ctx.needs_input_grad[:_TENSORS]
    gradients = [g.to(x.dtype) if w else None for g, x, w in zip(found, tensors, wanted, strict=True)]
    return (*gradients, *[None] * (len(ctx.needs_input_grad) - _TENSORS))


def _no_second(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("g2l_scores: no second derivative, backend 'reference' has it")


if not MISSING:
    torch.library.register_fake("m3el_fast::g2l_backward", _fake)
    torch.library.register_autograd("m3el_fast::g2l_scores", _backward, setup_context=_keep_operands)
    torch.library.register_autograd("m3el_fast::g2l_backward", _no_second)
