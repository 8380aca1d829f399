"""How an op gets its gradient, which is an op too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def register_gradient(op: str, backward: str, public: str) -> None:
    """Make the op ``backward`` the gradient of ``op``, both of the library ``m3el_fast``; it has none itself.

    Args:
        op: gives a result, and perhaps further tensors that the backward pass needs.
        backward: takes the result's gradient, those tensors, and all that ``op`` took; gives the gradients of the first
            tensors among the latter.
        public: what the error names that a second derivative raises.
    """
    launch = getattr(torch.ops.m3el_fast, backward)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        kept = () if isinstance(output, Tensor) else output[1:]
        ctx.kept, ctx.others = len(kept), [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*kept, *[x if isinstance(x, Tensor) else None for x in inputs])
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)  # no zeros of the size of what is kept

    def run(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.others)
        kept, tensors = ctx.saved_tensors[: ctx.kept], ctx.saved_tensors[ctx.kept :]
        inputs = [other if tensor is None else tensor for tensor, other in zip(tensors, ctx.others, strict=True)]
        found = iter(launch(gradient, *kept, *inputs))
        return tuple(next(found, None) if isinstance(x, Tensor) else None for x in inputs)

    torch.library.register_autograd(f"m3el_fast::{op}", run, setup_context=keep)
    refuse_second(backward, public)


def refuse_second(backward: str, public: str) -> None:
    """Let the op ``backward`` raise NotImplementedError where its own gradient is asked for."""

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError(f"{public}: no second derivative, backend 'reference' has it")

    torch.library.register_autograd(f"m3el_fast::{backward}", refuse)
