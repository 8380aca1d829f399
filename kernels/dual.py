"""MIMIC's dual-gated scores (spec sections 4 and 5.5) of packed rows: forward kernel and launcher.

A pair costs five inner products of d and some 50 operations on scalars, four of them special functions. Packed rows
have 3 d + 7 values, so that their starts are in general not aligned to 16 bytes and each load would be one of a single
value, a quarter (fp32) or an eighth (bf16, fp16) of what a load can carry: the launchers copy such rows to a stride
that is a multiple of 16 values, S + T rows read and written once where S T scores are written. The vectors inside a row
are aligned where d is a multiple of 16; for other d the narrow loads stay.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cases import CompileCase, Tiles, launch_options

SCALARS = 7


@triton.jit
def columns(row, there, first, k, d):
    """[rows, K] of the packed rows at the pointers: columns ``first`` + k, zero where k is beyond d."""
    return tl.load(row[:, None] + (first + k)[None, :], mask=there[:, None] & (k < d)[None, :], other=0.0)


@triton.jit
def not_negative(x):
    return tl.where(x <= 0, 0.0, x)  # NaN stays


@triton.jit
def pair_terms(
    own_row,  # [OWN] pointers
    own_there,  # [OWN]
    other_row,  # [OTHER] pointers
    other_there,  # [OTHER]
    gate,
    bias,
    d,
    eps1,
    eps2,
    OWN_SOURCE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a score and its gradient need of each pair, [OWN, OTHER], own rows being sources or targets.

    Returns what is under the root in LN1's standard deviation times d (less eps), 1 / that deviation, the gate's logit
    less its constant over that, and the gate g; with s = g / LN1's deviation and x s = LN1's output before q (all as in
    the reference): n . x, n . q, x . x, x . q, x . k, k . q; the score's dot before LN2's scale, then LN2's like LN1's.
    """
    first = tl.zeros([own_row.shape[0], other_row.shape[0]], tl.float32)
    second, mixed, mixed2, third = first, first, first, first
    for start in range(0, d, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = columns(own_row, own_there, 0, column, d)
        y = columns(own_row, own_there, d, column, d)
        z = columns(own_row, own_there, 2 * d, column, d)
        x_other = columns(other_row, other_there, 0, column, d).T
        y_other = columns(other_row, other_there, d, column, d).T
        z_other = columns(other_row, other_there, 2 * d, column, d).T
        first = tl.dot(x, x_other, first, input_precision=PRECISION)
        second = tl.dot(y, y_other, second, input_precision=PRECISION)
        mixed = tl.dot(y, z_other, mixed, input_precision=PRECISION)
        mixed2 = tl.dot(z, y_other, mixed2, input_precision=PRECISION)
        third = tl.dot(z, z_other, third, input_precision=PRECISION)
    if OWN_SOURCE:  # a, n, pa against v, pv, k
        n_k, pa_pv = mixed, mixed2
    else:
        pa_pv, n_k = mixed, mixed2

    a_a = side_scalar(own_row, own_there, other_row, other_there, d, 0, OWN_SOURCE)
    gate_a = side_scalar(own_row, own_there, other_row, other_there, d, 1, OWN_SOURCE)
    n_pa = side_scalar(own_row, own_there, other_row, other_there, d, 2, OWN_SOURCE)
    n_q = side_scalar(own_row, own_there, other_row, other_there, d, 3, OWN_SOURCE)
    pa_pa = side_scalar(own_row, own_there, other_row, other_there, d, 4, OWN_SOURCE)
    pa_q = side_scalar(own_row, own_there, other_row, other_there, d, 5, OWN_SOURCE)
    v_v = side_scalar(own_row, own_there, other_row, other_there, d, 0, not OWN_SOURCE)
    gate_v = side_scalar(own_row, own_there, other_row, other_there, d, 1, not OWN_SOURCE)
    pv_pv = side_scalar(own_row, own_there, other_row, other_there, d, 2, not OWN_SOURCE)
    pv_q = side_scalar(own_row, own_there, other_row, other_there, d, 3, not OWN_SOURCE)
    k_k = side_scalar(own_row, own_there, other_row, other_there, d, 4, not OWN_SOURCE)
    pv_k = side_scalar(own_row, own_there, other_row, other_there, d, 5, not OWN_SOURCE)
    k_q = side_scalar(own_row, own_there, other_row, other_there, d, 6, not OWN_SOURCE)

    pair = own_there[:, None] & other_there[None, :]
    square1 = tl.where(pair, a_a + v_v + 2 * first, 1.0)  # no pair: finite, whatever the eps
    rstd1 = tl.rsqrt(not_negative(square1) / d + eps1)
    gates = gate_a + gate_v
    g = 2 * tl.sigmoid(2 * (gates * rstd1 + gate)) - 1
    s = g * rstd1
    n_x = second + n_pa
    dot = s * n_x + g * n_q + n_k
    x_x = pa_pa + pv_pv + 2 * pa_pv
    x_q = pa_q + pv_q
    x_k = third + pv_k
    square2 = s * s * x_x + g * g * bias + k_k + 2 * s * g * x_q + 2 * s * x_k + 2 * g * k_q
    square2 = tl.where(pair, square2, 1.0)
    rstd2 = tl.rsqrt(not_negative(square2) / d + eps2)
    return square1, rstd1, gates, g, n_x, n_q, x_x, x_q, x_k, k_q, dot, square2, rstd2


@triton.jit
def scalar(row, there, d, i):
    """[rows] in fp32: scalar i of the packed rows."""
    return tl.load(row + 3 * d + i, mask=there, other=0.0).to(tl.float32)


@triton.jit
def side_scalar(own_row, own_there, other_row, other_there, d, i, OWN: tl.constexpr):
    """Scalar i of the own rows, [OWN, 1], or of the others, [1, OTHER]."""
    own, other = scalar(own_row, own_there, d, i)[:, None], scalar(other_row, other_there, d, i)[None, :]
    return own if OWN else other


@triton.jit
def dual_fwd_kernel(
    source,  # [S, 3 d + 7], rows source_stride apart
    target,  # [T, 3 d + 7], rows target_stride apart
    gate,  # [1]
    bias,  # [1]
    out,  # [S, T]
    S,
    T,
    d,
    eps1,
    eps2,
    source_stride,
    target_stride,
    PRECISION: tl.constexpr,
    BS: tl.constexpr,
    BT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(S, BS)
    s = (tl.program_id(0) % tiles * BS + tl.arange(0, BS)).to(tl.int64)
    t = (tl.program_id(0) // tiles * BT + tl.arange(0, BT)).to(tl.int64)
    source_row, target_row = source + s * source_stride, target + t * target_stride
    gate, bias = tl.load(gate).to(tl.float32), tl.load(bias).to(tl.float32)
    _, _, _, _, _, _, _, _, _, _, dot, _, rstd2 = pair_terms(
        source_row, s < S, target_row, t < T, gate, bias, d, eps1, eps2, True, BLOCK, PRECISION
    )
    scores = dot * rstd2 + scalar(source_row, s < S, d, 6)[:, None]
    tl.store(out + s[:, None] * T + t[None, :], scores, mask=(s < S)[:, None] & (t < T)[None, :])


def precision(dtype: torch.dtype) -> str:
    """Of products of fp32 values: about fp32's for fp32 rows; else tf32's, which has all that bf16 and fp16 have."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def forward_tiles(dtype: torch.dtype) -> Tiles:
    """Tiles of :func:`dual_fwd_kernel`."""
    block = 16 if dtype == torch.float32 else 32
    return Tiles({"BS": 64, "BT": 32, "BLOCK": block, "PRECISION": precision(dtype)}, launch_options(8, 2))


def aligned(rows: Tensor) -> Tensor:
    """Packed rows with values side by side and a stride that is a multiple of 16."""
    if rows.stride(1) == 1 and rows.stride(0) % 16 == 0:
        return rows
    count, width = rows.shape
    return rows.new_empty(count, width + -width % 16)[:, :width].copy_(rows)


def scores(source: Tensor, target: Tensor, gate: Tensor, bias: Tensor, eps1: float, eps2: float) -> Tensor:
    """Scores [S, T] in the rows' dtype of packed rows [S, 3 d + 7] and [T, 3 d + 7]; gate, bias: one value each."""
    source, target = aligned(source), aligned(target)
    S, T = source.shape[0], target.shape[0]
    out = source.new_empty(S, T)
    tiles = forward_tiles(source.dtype)
    dual_fwd_kernel[(triton.cdiv(S, tiles.constexprs["BS"]) * triton.cdiv(T, tiles.constexprs["BT"]),)](
        source=source,
        target=target,
        gate=gate,
        bias=bias,
        out=out,
        S=S,
        T=T,
        d=(source.shape[1] - SCALARS) // 3,
        eps1=eps1,
        eps2=eps2,
        source_stride=source.stride(0),
        target_stride=target.stride(0),
        **tiles.constexprs,
        **tiles.options,
    )
    return out


def compile_cases(kernel: Any, tiles: Tiles, dtype: torch.dtype, what: str, spill_bytes: int = 0) -> list[CompileCase]:
    """``kernel`` for the paper's d = 96, and for d = 200, whose vectors are not aligned."""
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    types = dict.fromkeys(("source", "target", "own_rows", "other_rows", "out", "d_scores", "d_own"), f"*{name}")
    types |= dict.fromkeys(("gate", "bias", "partial"), "*fp32") | dict.fromkeys(("eps1", "eps2"), "fp32")
    signature = {a: types.get(a, "i32") for a in kernel.arg_names if a not in tiles.constexprs}
    strides = ("source_stride", "target_stride", "own_stride", "other_stride")
    return [
        CompileCase(kernel, f"{name} {what} d={d}", signature, *tiles, aligned, spill_bytes=spill_bytes)
        for d, aligned in ((96, (*strides, "d")), (200, strides))
    ]


COMPILE_CASES = [
    case
    for dtype in (torch.float32, torch.bfloat16)
    for case in compile_cases(dual_fwd_kernel, forward_tiles(dtype), dtype, "scores")
]
