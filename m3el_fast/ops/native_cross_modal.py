"""Native cross-modal contexts: products with weights, attention, and all behind U, each one op over all items."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops.gradients import register_gradient
from m3el_fast.ops.reference import HEAD_TEMPERATURES

_TENSORS = 10  # glob, local and eight weights: what has a gradient, first among the op's arguments


@torch.library.custom_op("m3el_fast::native_cross_modal_context", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Contexts [n, d] of contiguous fp32 tensors (``local`` also in bf16), and what the backward pass needs, [n, d]
    each: the weighted means of the local rows, U of them, U of the globals, and F (empty where there is none)."""
    ops = torch.ops.m3el_fast
    tail = _tail(gate_weight, gate_bias, norm_weight, norm_bias, eps, head_weight, lam, local)
    with torch.autocast("cpu", enabled=False):
        linear, u = _linear(), u_weight.T.contiguous()
        mean = ops.cross_modal_attend(linear(glob, u_weight, None), local)
        enriched, row, mix = linear(mean, u, u_bias), linear(glob, u, u_bias), None
        if fusion_weight is not None:
            assert fusion_bias is not None
            both = enriched.relu().add_(row.relu(), alpha=_row_share(head_weight, lam))
            mix = linear(both, fusion_weight.T.contiguous(), 2 * fusion_bias)
        out = ops.cross_modal_finish(glob, enriched, row, mix, *tail)
    return out, mean, enriched, row, glob.new_empty(0) if mix is None else mix


@context.register_fake
def _(glob: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    out, mean, enriched, row = (torch.empty_like(glob) for _ in range(4))
    return out, mean, enriched, row, glob.new_empty(0 if others[7] is None else glob.shape)  # fusion_weight


@torch.library.custom_op("m3el_fast::native_cross_modal_backward", mutates_args=())
def backward(
    gradient: Tensor,
    mean: Tensor,
    enriched: Tensor,
    row: Tensor,
    mix: Tensor,
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
    """The gradients of the tensors that :func:`context` takes, but of ``head_weight``."""
    ops = torch.ops.m3el_fast
    tail = _tail(gate_weight, gate_bias, norm_weight, norm_bias, eps, head_weight, lam, local)
    with torch.autocast("cpu", enabled=False):
        linear, fused = _linear(), mix if mix.numel() else None
        items, weights = ops.cross_modal_finish_backward(gradient.contiguous(), glob, enriched, row, fused, *tail)
        of_glob, of_enriched, of_row = items[:3].unbind()
        of_fusion: list[Tensor] = []
        if fusion_weight is not None:
            share, of_mix = _row_share(head_weight, lam), items[3]
            of_both = linear(of_mix, fusion_weight, None)
            of_fusion = [of_mix.T @ enriched.relu().add_(row.relu(), alpha=share), 2 * of_mix.sum(0)]
            of_enriched += of_both * (enriched > 0)
            of_row += share * of_both * (row > 0)
        query = linear(glob, u_weight, None)
        of_query, of_local = ops.cross_modal_attend_backward(linear(of_enriched, u_weight, None), query, local)
        of_glob = linear(of_row, u_weight, None).add_(of_glob).add_(linear(of_query, u_weight.T.contiguous(), None))
        of_u = (of_enriched.T @ mean).addmm_(of_row.T, glob).addmm_(glob.T, of_query)
        of_u_bias = of_enriched.sum(0).add_(of_row.sum(0))
        # clones: no two results of an op share memory
        of_gate, of_norm, of_bias, of_gate_bias = (w.clone() for w in weights.split([*[glob.shape[1]] * 3, 1]))
    return [of_glob, of_local, of_u, of_u_bias, of_gate[None], of_gate_bias, of_norm, of_bias, *of_fusion]


@backward.register_fake
def _(gradient: Tensor, mean: Tensor, enriched: Tensor, row: Tensor, mix: Tensor, *others: Any) -> list[Tensor]:
    return [torch.empty_like(x) for x in others[:_TENSORS] if x is not None]


def _linear() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The product x [n, k] @ weight [k, d] plus bias: torch's at the scalar level, which has no vectors for its own."""
    return torch.ops.m3el_fast.cross_modal_linear if torch.ops.m3el_fast.cpu_isa() else _torch_linear


def _torch_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _tail(*args: Any) -> tuple[Any, ...]:
    """Arguments of the finishing op behind the items'."""
    *weights, eps, head_weight, lam, local = args
    return *weights, eps, head_weight, HEAD_TEMPERATURES[head_weight.shape[0]], lam, local.shape[1]


def _row_share(head_weight: Tensor, lam: float) -> float:
    return (1 + lam) * float(head_weight.mean())


register_gradient("native_cross_modal_context", "native_cross_modal_backward", "cross_modal_context")
