"""The Triton kernels of global-to-local scores as custom ops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops import g2l_rules, gpu


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


scores.register_fake(g2l_rules.fake_scores)


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


pairs.register_fake(g2l_rules.fake_pairs)


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
def _(gradient: Tensor, *others: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in others[:6]]  # query to norm_bias


g2l_rules.register_gradient("triton_g2l_scores", "triton_g2l_backward", backward)
