"""Backward kernel of MIMIC's dual-gated scores, and its launcher.

Each pair is recomputed for either side, once per 32 columns of d: a program owns rows of one side and some columns of
their gradient, and adds up over all rows of the other: no atomics, the same bits at every run, O(S + T) memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import dual
from .cases import CompileCase, Tiles, launch_options
from .dual import columns, pair_terms


@triton.jit
def dual_bwd_kernel(
    d_scores,  # [own, others], of any strides
    own_rows,  # [own, 3 d + 7], rows own_stride apart: sources with OF_SOURCE, else targets
    other_rows,  # [others, 3 d + 7], rows other_stride apart
    gate,  # [1]
    bias,  # [1]
    d_own,  # [own, 3 d + 7]
    partial,  # [tiles, 2] fp32, with OF_SOURCE: sums for gate and bias
    own_count,
    other_count,
    d,
    eps1,
    eps2,
    own_stride,
    other_stride,
    scores_own_stride,
    scores_other_stride,
    OF_SOURCE: tl.constexpr,
    PRECISION: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    own = (tl.program_id(0) * OWN + tl.arange(0, OWN)).to(tl.int64)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    gate, bias = tl.load(gate).to(tl.float32), tl.load(bias).to(tl.float32)
    first = tl.zeros([OWN, CHUNK], tl.float32)
    second, third = first, first
    u0 = tl.zeros([OWN], tl.float32)
    u1, u2, u3, u4, u5, u6, to_gate, to_bias = u0, u0, u0, u0, u0, u0, u0, u0
    there = own < own_count
    own_row = own_rows + own * own_stride
    for start in range(0, other_count, OTHER):
        other = (start + tl.arange(0, OTHER)).to(tl.int64)
        other_there = other < other_count
        other_row = other_rows + other * other_stride
        square1, rstd1, gates, g, n_x, n_q, x_x, x_q, x_k, k_q, dot, square2, rstd2 = pair_terms(
            own_row, there, other_row, other_there, gate, bias, d, eps1, eps2, OF_SOURCE, BLOCK, PRECISION
        )
        at = own[:, None] * scores_own_stride + other[None, :] * scores_other_stride
        d_score = tl.load(d_scores + at, mask=there[:, None] & other_there[None, :], other=0.0).to(tl.float32)

        sg = g * rstd1
        d_dot = d_score * rstd2
        d_square2 = tl.where(square2 >= 0, -0.5 / d * d_score * dot * rstd2 * rstd2 * rstd2, 0.0)
        d_s = d_dot * n_x + 2 * d_square2 * (sg * x_x + g * x_q + x_k)
        d_g = d_dot * n_q + 2 * d_square2 * (g * bias + sg * x_q + k_q) + d_s * rstd1
        d_logit = d_g * (1 - g * g)
        d_rstd1 = d_s * g + d_logit * gates
        d_square1 = tl.where(square1 >= 0, -0.5 / d * d_rstd1 * rstd1 * rstd1 * rstd1, 0.0)
        d_n_pv = d_dot * sg
        d_x_x = d_square2 * sg * sg
        d_x_q = 2 * d_square2 * sg * g
        d_x_k = 2 * d_square2 * sg
        d_gates = d_logit * rstd1
        d_yz, d_zy = (d_dot, 2 * d_x_x) if OF_SOURCE else (2 * d_x_x, d_dot)
        x = columns(other_row, other_there, 0, column, d).to(tl.float32)
        first = tl.dot(2 * d_square1, x, first, input_precision=PRECISION)
        y = columns(other_row, other_there, d, column, d).to(tl.float32)
        second = tl.dot(d_n_pv, y, second, input_precision=PRECISION)
        third = tl.dot(d_zy, y, third, input_precision=PRECISION)
        z = columns(other_row, other_there, 2 * d, column, d).to(tl.float32)
        second = tl.dot(d_yz, z, second, input_precision=PRECISION)
        third = tl.dot(d_x_k, z, third, input_precision=PRECISION)
        u0 += tl.sum(d_square1, 1)
        u1 += tl.sum(d_gates, 1)
        if OF_SOURCE:
            u2 += tl.sum(d_n_pv, 1)
            u3 += tl.sum(d_dot * g, 1)
            u4 += tl.sum(d_x_x, 1)
            u5 += tl.sum(d_x_q, 1)
            u6 += tl.sum(d_score, 1)
            to_gate += tl.sum(d_logit, 1)
            to_bias += tl.sum(d_square2 * g * g, 1)
        else:
            u2 += tl.sum(d_x_x, 1)
            u3 += tl.sum(d_x_q, 1)
            u4 += tl.sum(d_square2, 1)
            u5 += tl.sum(d_x_k, 1)
            u6 += tl.sum(2 * d_square2 * g, 1)

    row = d_own + own * (3 * d + 7)
    inside = there[:, None] & (column < d)[None, :]
    tl.store(row[:, None] + column[None, :], first, mask=inside)
    tl.store(row[:, None] + (d + column)[None, :], second, mask=inside)
    tl.store(row[:, None] + (2 * d + column)[None, :], third, mask=inside)
    if tl.program_id(1) == 0:
        row += 3 * d
        tl.store(row, u0, mask=there)
        tl.store(row + 1, u1, mask=there)
        tl.store(row + 2, u2, mask=there)
        tl.store(row + 3, u3, mask=there)
        tl.store(row + 4, u4, mask=there)
        tl.store(row + 5, u5, mask=there)
        tl.store(row + 6, u6, mask=there)
        if OF_SOURCE:
            tl.store(partial + tl.program_id(0) * 2, tl.sum(to_gate, 0))
            tl.store(partial + tl.program_id(0) * 2 + 1, tl.sum(to_bias, 0))


def backward_tiles(dtype: torch.dtype) -> Tiles:
    """Tiles of :func:`dual_bwd_kernel`.

    32 columns a program: in fp32 that spills some registers, and 16, which do not, would recompute each pair twice as
    often.
    """
    constexprs = {"OWN": 64, "OTHER": 16, "BLOCK": 16, "CHUNK": 32, "PRECISION": dual.precision(dtype)}
    return Tiles(constexprs, launch_options(8, 2))


def gradients(
    gradient: Tensor, source: Tensor, target: Tensor, gate: Tensor, bias: Tensor, eps1: float, eps2: float
) -> list[Tensor]:
    """Gradients of source, target, gate and bias, each in its tensor's dtype and shape; gradient: of the scores."""
    source, target = dual.aligned(source), dual.aligned(target)
    d = (source.shape[1] - dual.SCALARS) // 3
    tiles = backward_tiles(source.dtype)
    own, chunks = tiles.constexprs["OWN"], triton.cdiv(d, tiles.constexprs["CHUNK"])
    d_source, d_target = source.new_empty(source.shape), target.new_empty(target.shape)
    partial = source.new_empty((triton.cdiv(source.shape[0], own), 2), dtype=torch.float32)
    sides = ((gradient, source, target, d_source), (gradient.T, target, source, d_target))
    for d_scores, rows, others, d_own in sides:
        dual_bwd_kernel[(triton.cdiv(rows.shape[0], own), chunks)](
            d_scores=d_scores,
            own_rows=rows,
            other_rows=others,
            gate=gate,
            bias=bias,
            d_own=d_own,
            partial=partial,
            own_count=rows.shape[0],
            other_count=others.shape[0],
            d=d,
            eps1=eps1,
            eps2=eps2,
            own_stride=rows.stride(0),
            other_stride=others.stride(0),
            scores_own_stride=d_scores.stride(0),
            scores_other_stride=d_scores.stride(1),
            OF_SOURCE=d_own is d_source,
            **tiles.constexprs,
            **tiles.options,
        )
    d_gate, d_bias = partial.sum(0)
    constants = [x.reshape(c.shape).to(c.dtype, copy=True) for x, c in ((d_gate, gate), (d_bias, bias))]
    return [d_source, d_target, *constants]


def _cases(dtype: torch.dtype, of_source: bool) -> list[CompileCase]:
    constexprs, options = backward_tiles(dtype)
    tiles = Tiles(constexprs | {"OF_SOURCE": of_source}, options)
    side = "source" if of_source else "target"
    return dual.compile_cases(dual_bwd_kernel, tiles, dtype, side, spill_bytes=160 if dtype == torch.float32 else 0)


COMPILE_CASES = [
    case
    for dtype in (torch.float32, torch.bfloat16)
    for of_source in (True, False)
    for case in _cases(dtype, of_source)
]
