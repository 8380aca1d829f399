"""Rows of all processes of a distributed run, with gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Rank and number of processes; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(tensor: Tensor) -> Tensor:
    """Concatenate [n, ...] of all processes into [world * n, ...], in rank order.

    The backward pass sums over processes what each of them contributes to a row and hands it to the row's owner. With
    the mean over processes that DistributedDataParallel takes, the gradient is that of the mean of the processes'
    losses.
    """
    if world()[1] == 1:
        return tensor
    gathered: Tensor = _GatherRows.apply(tensor.contiguous())  # type: ignore[no-untyped-call]  # torch has no type
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)  # the argument is not ours to change
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
