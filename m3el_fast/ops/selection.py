"""Selection of the best entities: top-k of scores, at once or block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops import cuda, gpu, reference
from m3el_fast.ops.backends import Backend, choose
from m3el_fast.ops.checks import expect, shape
from m3el_fast.ops.native import needs_gradient, not_cpu_fp32


def topk(scores: Tensor, k: int, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """The k largest of each row of scores [M, N]: values and int64 indices [M, k], sorted, ties to the lower index.

    NaN sorts behind every number.

    Raises:
        ValueError: scores is not a matrix, or k is not in 1..N.
    """
    columns = shape("scores", scores, 2)[1]
    if not 1 <= k <= columns:
        raise ValueError(f"k: expected 1 to {columns} (the number of columns), got {k}")
    chosen = choose(backend, scores, _native_obstacle(scores), gpu.NO_KERNEL, _cuda_obstacle(k, scores))
    if chosen == "reference":
        return reference.topk(scores, k)
    values, ids = _library(chosen).topk(scores.contiguous(), k)
    return values, ids


def topk_merge(
    values: Tensor, ids: Tensor, scores: Tensor, first: int, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """A running top-k after one more block of scores: a scan in blocks keeps no [M, E] matrix.

    Args:
        values, ids: [M, k], the selection so far as :func:`topk` gives it, ids (int64) below ``first``; before the
            first block -inf and -1.
        scores: [M, N] of the entities ``first`` to ``first + N - 1``, in the dtype of ``values``.

    Returns:
        The new values and ids [M, k], sorted, ties to the lower id, NaN last.

    Raises:
        ValueError: shapes or dtypes do not match.
    """
    rows, k = shape("values", values, 2)
    expect("ids", ids, (rows, k))
    columns = shape("scores", scores, 2)[1]
    expect("scores", scores, (rows, columns))
    if k < 1 or ids.dtype != torch.int64 or values.dtype != scores.dtype:
        expected = f"values of {scores.dtype} and ids of torch.int64, at least one a row"
        raise ValueError(f"values, ids: expected {expected}, got {values.dtype}, {ids.dtype}, {k}")
    native, other = _native_obstacle(scores, values), _cuda_obstacle(k, scores, values, ids)
    chosen = choose(backend, scores, native, gpu.NO_KERNEL, other)
    if chosen != "reference":
        values, ids = _library(chosen).topk_merge(values.contiguous(), ids.contiguous(), scores.contiguous(), first)
        return values, ids
    both = torch.cat([ids, torch.arange(first, first + columns, device=ids.device).expand(rows, -1)], dim=1)
    values, places = reference.topk(torch.cat([values, scores], dim=1), k)
    return values, both.gather(1, places)


def _native_obstacle(*tensors: Tensor) -> str | None:
    return not_cpu_fp32(*tensors) or needs_gradient(*tensors)


def _cuda_obstacle(k: int, scores: Tensor, *others: Tensor) -> str | None:
    return cuda.not_selectable(k, scores, *others) or needs_gradient(scores, *others)


def _library(chosen: str) -> Any:
    return cuda.LIBRARY if chosen == "cuda" else torch.ops.m3el_fast
