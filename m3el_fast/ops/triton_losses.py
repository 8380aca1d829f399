"""The Triton kernels of the contrastive losses as custom ops: their fake tensors and gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops import gpu
from m3el_fast.ops.gradients import register_gradient


@torch.library.custom_op("m3el_fast::triton_contrastive", mutates_args=())
def contrastive(
    entity: Tensor,
    mention: Tensor,
    duplicates: Tensor | None,
    first: int,
    last: int,
    other_scale: float,
    other_weight: float,
    same_scale: float | None,
    same_weight: float,
    self_term: bool,
    normalise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss of the anchors first to last - 1 of both sides, and what the backward pass needs.

    The other arguments are ``Terms`` of ``kernels/contrastive_tiles.py``.
    """
    from m3el_fast.kernels.contrastive import forward
    from m3el_fast.kernels.contrastive_tiles import Terms

    terms = Terms(other_scale, other_weight, same_scale, same_weight, self_term, normalise)
    with gpu.launches(entity):
        loss, saved = forward(entity, mention, duplicates, first, last, terms)
    return loss, saved.lse, saved.lse.new_empty(0) if saved.inverse is None else saved.inverse


@contrastive.register_fake
def _(entity: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, normalise = 2 * entity.shape[0], others[-1]
    loss, lse = (entity.new_empty(shape, dtype=torch.float32) for shape in ((), rows))
    return loss, lse, lse.new_empty(rows if normalise else 0)


@torch.library.custom_op("m3el_fast::triton_contrastive_backward", mutates_args=())
def contrastive_backward(
    gradient: Tensor,
    lse: Tensor,
    inverse: Tensor,
    entity: Tensor,
    mention: Tensor,
    duplicates: Tensor | None,
    first: int,
    last: int,
    other_scale: float,
    other_weight: float,
    same_scale: float | None,
    same_weight: float,
    self_term: bool,
    normalise: bool,
) -> tuple[Tensor, Tensor]:
    from m3el_fast.kernels.contrastive import Saved
    from m3el_fast.kernels.contrastive_backward import backward
    from m3el_fast.kernels.contrastive_tiles import Terms

    terms = Terms(other_scale, other_weight, same_scale, same_weight, self_term, normalise)
    saved = Saved(lse, inverse if normalise else None)
    with gpu.launches(entity):
        found: tuple[Tensor, Tensor] = backward(gradient, entity, mention, duplicates, first, last, terms, saved)
    return found


@contrastive_backward.register_fake
def _(
    gradient: Tensor, lse: Tensor, inverse: Tensor, entity: Tensor, mention: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    return entity.new_empty(entity.shape), mention.new_empty(mention.shape)


register_gradient("triton_contrastive", "triton_contrastive_backward", "contrastive losses")
