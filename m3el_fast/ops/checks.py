"""Checks that the public ops share."""

from __future__ import annotations

import torch
from torch import Tensor


def shape(name: str, tensor: Tensor, dims: int) -> torch.Size:
    """The shape of ``tensor``. Raises ValueError if it has another number of dimensions."""
    if tensor.dim() != dims:
        raise ValueError(f"{name}: expected {dims} dimensions, got shape {tuple(tensor.shape)}")
    return tensor.shape


def expect(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    """Raises ValueError if ``tensor`` has another shape."""
    if tuple(tensor.shape) != wanted:
        raise ValueError(f"{name}: expected shape {wanted}, got {tuple(tensor.shape)}")


def expect_rows(name: str, rows: Tensor, count: int) -> None:
    """Raises ValueError if ``rows`` is not an int64 vector of values in 0..count-1."""
    if rows.dtype != torch.int64 or rows.dim() != 1:
        raise ValueError(f"{name}: expected a vector of int64, got {rows.dtype} of shape {tuple(rows.shape)}")
    if rows.numel():
        low, high = torch.stack(rows.aminmax()).tolist()  # on a GPU, one wait for both
        if not 0 <= low <= high < count:
            raise ValueError(f"{name}: expected rows in 0..{count - 1}, got {low}..{high}")
