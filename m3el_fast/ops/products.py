"""Scores that are inner products of per-side vectors, and MIMIC's, which need five of them (spec sections 5.1, 5.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from m3el_fast.ops import gpu, reference, triton_dual
from m3el_fast.ops.backends import Backend, choose
from m3el_fast.ops.checks import expect, expect_rows, shape
from m3el_fast.ops.native import needs_gradient, not_cpu_fp32
from m3el_fast.ops.reference import DualConstants, DualWeights

_DUAL_SCALARS = 7


def inner_scores(mention: Tensor, entity: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Inner products [M, E] of mention vectors [M, D] and entity vectors [E, D].

    The native backend gives equal rows bitwise equal scores.

    Raises:
        ValueError: shapes do not match.
    """
    width = shape("mention", mention, 2)[1]
    expect("entity", entity, (shape("entity", entity, 2)[0], width))
    if choose(backend, mention, _obstacle(mention, entity), gpu.NO_KERNEL) == "native":
        result: Tensor = torch.ops.m3el_fast.inner_scores(_rows(mention), _rows(entity))
        return result
    return mention @ entity.T


def inner_pairs(
    mention: Tensor, entity: Tensor, mention_row: Tensor, entity_row: Tensor, *, backend: Backend = "auto"
) -> Tensor:
    """Inner products [P] of the pairs (mention_row[i], entity_row[i]), [P] int64 rows of [M, D] and [E, D].

    Raises:
        ValueError: shapes do not match, or a row is out of range.
    """
    mentions, width = shape("mention", mention, 2)
    entities = shape("entity", entity, 2)[0]
    expect("entity", entity, (entities, width))
    _expect_pairs(mention_row, mentions, entity_row, entities)
    if choose(backend, mention, _obstacle(mention, entity), gpu.NO_KERNEL) == "native":
        result: Tensor = torch.ops.m3el_fast.inner_pairs(_rows(mention), _rows(entity), mention_row, entity_row)
        return result
    return (mention[mention_row] * entity[entity_row]).sum(dim=1)


def dual_source(source: Tensor, weights: DualWeights) -> Tensor:
    """A source side of MIMIC's dual unit, [S, d] vectors, as packed rows [S, 3 d + 7] (spec sections 4 and 5.5).

    Raises:
        ValueError: source is no matrix.
    """
    shape("source", source, 2)
    return reference.dual_source(source, weights)


def dual_target(key: Tensor, value: Tensor, weights: DualWeights) -> Tensor:
    """A target side, key and value [T, d], as packed rows [T, 3 d + 7] (spec sections 4 and 5.5).

    Raises:
        ValueError: shapes do not match.
    """
    expect("value", value, tuple(shape("key", key, 2)))
    return reference.dual_target(key, value, weights)


def dual_constants(weights: DualWeights) -> DualConstants:
    """What the pairs of one dual unit share."""
    return reference.dual_constants(weights)


def dual_scores(source: Tensor, target: Tensor, constants: DualConstants, *, backend: Backend = "auto") -> Tensor:
    """MIMIC's dual-gated scores [S, T] of packed rows [S, 3 d + 7] and [T, 3 d + 7] (spec sections 4 and 5.5).

    The Triton kernel takes rows of one dtype, fp32, bf16 or fp16, and constants of any of the three, returns scores of
    the rows' dtype and has a gradient. Its products are about as exact as fp32's (relative error 2^-21) for fp32 rows,
    and of bf16 or fp16 operands with sums in fp32 for others. Rows that start at multiples of 16 values (slices of
    wider ones) spare it a copy of them.

    Args:
        source, target: from :func:`dual_source` and :func:`dual_target`; constants: from :func:`dual_constants`.
        backend: which implementation runs; ``auto`` takes Triton's on a GPU, the native one, which has no gradient, on
            a CPU, where they cover the arguments.

    Raises:
        ValueError: shapes do not match, or ``backend`` cannot serve.
    """
    _check_packed(source, target)
    native = _dual_obstacle(source, target, constants)
    chosen = choose(backend, source, native, _triton_obstacle(source, target, constants))
    if chosen == "triton":
        found: Tensor = triton_dual.scores(source, target, *constants)
        return found
    if chosen == "native":
        result: Tensor = torch.ops.m3el_fast.dual_scores(_rows(source), _rows(target), _packed(constants))
        return result
    return reference.dual_scores(source, target, constants)


def dual_pairs(
    source: Tensor,
    target: Tensor,
    constants: DualConstants,
    source_row: Tensor,
    target_row: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """MIMIC's dual-gated scores [P] of the pairs (source_row[i], target_row[i]) of packed rows.

    ``backend`` as in :func:`dual_scores`, but there is no Triton kernel: ``auto`` takes the reference on a GPU.

    Raises:
        ValueError: shapes do not match, a row is out of range, or ``backend`` cannot serve.
    """
    _check_packed(source, target)
    _expect_pairs(source_row, source.shape[0], target_row, target.shape[0])
    if choose(backend, source, _dual_obstacle(source, target, constants), gpu.NO_KERNEL) == "native":
        packed = _packed(constants)
        result: Tensor = torch.ops.m3el_fast.dual_pairs(_rows(source), _rows(target), packed, source_row, target_row)
        return result
    return reference.dual_pairs(source, target, constants, source_row, target_row)


def _obstacle(left: Tensor, right: Tensor) -> str | None:
    return not_cpu_fp32(left, right) or needs_gradient(left, right)


def _dual_obstacle(source: Tensor, target: Tensor, constants: DualConstants) -> str | None:
    return _obstacle(source, target) or _obstacle(constants.gate, constants.bias)


def _triton_obstacle(source: Tensor, target: Tensor, constants: DualConstants) -> str | None:
    if source.shape[0] == 0 or target.shape[0] == 0:
        return "the kernel takes no empty tensors"
    if source.dtype != target.dtype:
        return f"the kernel takes source and target of one dtype, got {source.dtype} and {target.dtype}"
    return gpu.not_gpu_floats(source, target, constants.gate, constants.bias)


def _rows(matrix: Tensor) -> Tensor:
    """The matrix with values of a row side by side; rows may be slices of longer ones."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _packed(constants: DualConstants) -> Tensor:
    eps = constants.gate.new_tensor([constants.eps1, constants.eps2])
    return torch.cat([constants.gate.reshape(1), constants.bias.reshape(1), eps])


def _check_packed(source: Tensor, target: Tensor) -> None:
    width = shape("source", source, 2)[1]
    if width <= _DUAL_SCALARS or (width - _DUAL_SCALARS) % 3:
        raise ValueError(f"source: expected rows of 3 d + {_DUAL_SCALARS} values, got {width}")
    expect("target", target, (shape("target", target, 2)[0], width))


def _expect_pairs(left: Tensor, left_count: int, right: Tensor, right_count: int) -> None:
    expect_rows("first rows", left, left_count)
    expect_rows("second rows", right, right_count)
    expect("second rows", right, tuple(left.shape))
