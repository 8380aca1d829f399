"""What the kernels of global-to-local scores are to torch, whichever backend: fake tensors and gradient.

Importing this module registers them for the native kernels; Triton's are in ``triton_g2l.py``. Nothing but the operands
is kept for the backward pass, which computes the attention again, some mentions and entities at a time, so that memory
grows with the number of entities and of mentions, not with that of their pairs. With ``bf16`` the gradient is that of
the unrounded scores (rounding counts as the identity), computed from products of bf16 operands as the scores are; the
context vector, its LayerNorm and the gradients of value, gate and norm are in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops.gradients import refuse_second
from m3el_fast.ops.native import MISSING

_TENSORS = 6  # query, key, value, gate, norm_weight, norm_bias: what has a gradient, first among the ops' arguments


def fake_scores(query: Tensor, key: Tensor, *others: Any) -> Tensor:
    """[M, E] of the arguments of ``g2l_scores``, the last two being rows and bf16."""
    rows = others[-2]
    return key.new_empty(key.shape[0], query.shape[0] if rows is None else rows.shape[0])


def fake_pairs(query: Tensor, key: Tensor, *others: Any) -> Tensor:
    """[P] of the arguments of ``g2l_pairs``, the last three being mention, entity and bf16."""
    return key.new_empty(others[-3].shape[0])


def register_gradient(scores: str, backward: str, launch: Callable[..., Sequence[Tensor]]) -> None:
    """Make the op ``backward`` of the library ``m3el_fast``, which ``launch`` calls, the gradient of ``scores``."""

    def run(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, query_mask, key_mask = ctx.saved_tensors
        found = launch(gradient.contiguous(), *tensors, ctx.eps, query_mask, key_mask, ctx.bf16)
        wanted = ctx.needs_input_grad[:_TENSORS]
        gradients = [g.to(x.dtype) if w else None for g, x, w in zip(found, tensors, wanted, strict=True)]
        return (*gradients, *[None] * (len(ctx.needs_input_grad) - _TENSORS))

    torch.library.register_autograd(f"m3el_fast::{scores}", run, setup_context=_keep_operands)
    refuse_second(backward, "g2l_scores")


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, eps, query_mask, key_mask, rows, bf16 = inputs
    if rows is not None:
        raise NotImplementedError("g2l_scores: no gradient with rows, index query and gate instead")
    ctx.save_for_backward(*tensors, query_mask, key_mask)
    ctx.eps, ctx.bf16 = eps, bf16


def _fake_backward(gradient: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return tuple(gradient.new_empty(x.shape) for x in others[:_TENSORS])


if not MISSING:
    torch.library.register_fake("m3el_fast::g2l_scores", fake_scores)
    torch.library.register_fake("m3el_fast::g2l_pairs", fake_pairs)
    torch.library.register_fake("m3el_fast::g2l_backward", _fake_backward)
    register_gradient("g2l_scores", "g2l_backward", torch.ops.m3el_fast.g2l_backward)
