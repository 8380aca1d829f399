"""Cross-modal contexts (spec sections 3.2 and 5.4): forward kernel and launcher.

An item's context costs one pass over its rows ``local`` [L, d], which nothing can avoid: n L d values from memory
(9.6 kB an item at L = 50, d = 96 in bf16), some 12 vector instructions each. All else is kept small beside it: the
products with U (3 d^2 multiply-adds an item, on tensor cores) read U from the L2 cache, twice for each tile of items;
the attended row, its softmax statistics and (T2V-only form) the argument of the fusion gate are written once, 4 d bytes
each, because the backward pass needs them: 4% more traffic where there is none. Dimensions are padded to a power of two
in registers only (96 to 128): 25% of the vector lanes idle then, no padding is read.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cases import CompileCase, Tiles, launch_options

_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def times(x_row, there, weight, out, d, TRANSPOSED: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr):
    """out [ITEMS, D] + X W (``TRANSPOSED``: X W^T) of the rows X at the pointers ``x_row`` and the weight W [d, d]."""
    BLOCK: tl.constexpr = min(D, 32)
    column = tl.arange(0, D)
    for start in range(0, d, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(x_row[:, None] + k[None, :], mask=there[:, None] & (k < d)[None, :], other=0.0)
        inside = (column < d)[:, None] & (k < d)[None, :]
        if TRANSPOSED:
            w = tl.load(weight + column[:, None] * d + k[None, :], mask=inside, other=0.0).T
        else:
            w = tl.load(weight + k[:, None] * d + column[None, :], mask=inside.T, other=0.0)
        out = tl.dot(x.to(tl.float32), w.to(tl.float32), out, input_precision=PRECISION)
    return out


@triton.jit
def load_vector(vector, d, D: tl.constexpr):
    """[1, D] in fp32 of a vector [d]; zero beyond d."""
    column = tl.arange(0, D)
    return tl.load(vector + column, mask=column < d, other=0.0).to(tl.float32)[None, :]


@triton.jit
def relu(x):
    return tl.where(x <= 0, 0.0, x)  # NaN stays


@triton.jit
def pool_heads(a, r, head_weight, L, log_rows, lam, TEMPERATURES: tl.constexpr, MAX_HEAD: tl.constexpr):
    """Pooled heads of the rows [a; r repeated L times].

    Returns H, dH/da, and ``whole``: H of r alone is whole * r, and dH/da + dH/dr = whole.
    """
    SOFT: tl.constexpr = len(TEMPERATURES)
    HEADS: tl.constexpr = SOFT + MAX_HEAD
    difference = a - r
    weights = 0.0
    soft = tl.zeros_like(a)
    slope = tl.zeros_like(a)
    for k in tl.static_range(SOFT):
        weight = tl.load(head_weight + k).to(tl.float32)
        s = tl.sigmoid(TEMPERATURES[k] * difference - log_rows)
        weights += weight
        soft += weight * s
        slope += weight * TEMPERATURES[k] * s * (1 - s)
    if MAX_HEAD:
        weight = tl.load(head_weight + SOFT).to(tl.float32)
        weights += weight
        soft += weight * tl.where(difference > 0, 1.0, tl.where(difference == 0, 0.5, 0.0))
    share = (weights / (L + 1) + lam * soft) / HEADS
    whole = (1 + lam) * weights / HEADS
    return whole * r + difference * share, share + difference * slope * (lam / HEADS), whole


@triton.jit
def gate_and_normalise(g, h, gate_weight, gate_bias, there, d, eps, D: tl.constexpr):
    """The gate tanh(w . g + b) [ITEMS], the normalised g * gate + H [ITEMS, D], and 1 / its standard deviation."""
    logit = tl.sum(g * load_vector(gate_weight, d, D), 1) + tl.load(gate_bias).to(tl.float32)
    gate = 2 * tl.sigmoid(2 * logit) - 1
    x = g * gate[:, None] + h
    x = tl.where((tl.arange(0, D) < d)[None, :], x - (tl.sum(x, 1) / d)[:, None], 0.0)
    rstd = tl.where(there, tl.rsqrt(tl.sum(x * x, 1) / d + eps), 0.0)
    return gate, x * rstd[:, None], rstd


@triton.jit
def cross_modal_fwd_kernel(
    glob,  # [n, d], rows glob_stride apart
    local,  # [n, L, d], items local_stride apart, rows row_stride apart
    u_weight,  # [d, d]
    u_bias,  # [d]
    gate_weight,  # [d]
    gate_bias,  # [1]
    norm_weight,  # [d]
    norm_bias,  # [d]
    fusion_weight,  # [d, d], with FUSION
    fusion_bias,  # [d], with FUSION
    head_weight,  # [K]
    out,  # [n, d]
    context,  # [n, d] fp32: the attended row
    mixed,  # [n, d] fp32, with FUSION: H + g', what the fusion gate sees
    stats,  # [2, n] fp32: largest logit (base 2) and sum of exponentials
    n,
    L,
    d,
    log_rows,
    lam,
    eps,
    glob_stride,
    local_stride,
    row_stride,
    TEMPERATURES: tl.constexpr,
    MAX_HEAD: tl.constexpr,
    FUSION: tl.constexpr,
    PRECISION: tl.constexpr,
    ITEMS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    STAGES: tl.constexpr,
):
    item = (tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    there = item < n
    column = tl.arange(0, D)
    inside = there[:, None] & (column < d)[None, :]
    at = item[:, None] * d + column[None, :]
    nothing = tl.zeros([ITEMS, D], tl.float32)
    glob_row = glob + item * glob_stride

    # p (U q)^T = (p U_w) q^T + p . U_b, and softmax ignores the last term
    q = times(glob_row, there, u_weight, nothing, d, False, D, PRECISION) * _LOG2_E
    top = tl.full([ITEMS], -float("inf"), tl.float32)
    total = tl.zeros([ITEMS], tl.float32)
    c = nothing
    first = local + item[:, None] * local_stride + column[None, :]
    for start in tl.range(0, L, ROWS, num_stages=STAGES):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)  # of a view, rows may be n d apart
        valid = (row < L)[:, None]
        x = tl.load(first[None] + row[:, None, None] * row_stride, mask=valid[:, :, None] & inside[None], other=0.0)
        x = x.to(tl.float32)
        logit = tl.where(valid, tl.sum(x * q[None], 2), -float("inf"))
        larger = tl.maximum(top, tl.max(logit, 0))
        scale = tl.exp2(top - larger)
        p = tl.exp2(logit - larger[None])
        total = total * scale + tl.sum(p, 0)
        c = c * scale[:, None] + tl.sum(p[:, :, None] * x, 0)
        top = larger
    tl.store(stats + item, top, mask=there)
    tl.store(stats + n + item, total, mask=there)
    tl.store(context + at, c / total[:, None], mask=inside)
    tl.debug_barrier()  # other threads of the program read it

    bias = load_vector(u_bias, d, D)
    a = relu(times(context + item * d, there, u_weight, nothing, d, True, D, PRECISION) + bias)
    r = relu(times(glob_row, there, u_weight, nothing, d, True, D, PRECISION) + bias)
    h, _, whole = pool_heads(a, r, head_weight, L, log_rows, lam, TEMPERATURES, MAX_HEAD)
    if FUSION:
        alone = whole * r
        tl.store(mixed + at, alone + a, mask=inside)
        tl.debug_barrier()
        logit = times(mixed + item * d, there, fusion_weight, nothing, d, True, D, PRECISION)
        f = tl.sigmoid(logit + 2 * load_vector(fusion_bias, d, D))
        h = a * f + alone * (1 - f)
    g = tl.load(glob_row[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    _, y, _ = gate_and_normalise(g, h, gate_weight, gate_bias, there, d, eps, D)
    tl.store(out + at, y * load_vector(norm_weight, d, D) + load_vector(norm_bias, d, D), mask=inside)


def forward_tiles(n: int, L: int, d: int, dtype: torch.dtype) -> Tiles:
    """Tiles of :func:`cross_modal_fwd_kernel`: 16 values of [ITEMS, D] a thread, larger tiles where many fill a GPU."""
    width = max(16, triton.next_power_of_2(d))
    warps = 8 if n >= 16384 or width > 128 else 4
    return row_tiles(L, width, warps, 512 * warps, 32, dtype)


def precision(dtype: torch.dtype) -> str:
    """Of products: fp32's, about, for fp32; else tf32's, which has every bf16 and fp16 value, and fp32's range."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def row_tiles(L: int, width: int, warps: int, values: int, step: int, dtype: torch.dtype) -> Tiles:
    """Tiles of ``values`` values of [ITEMS, width], with steps of up to ``step`` values a thread over the rows."""
    items = min(64, max(16, values // width))
    rows = max(1, step * 32 * warps // (items * width))
    constexprs = {
        "ITEMS": items,
        "ROWS": min(rows, 8, triton.next_power_of_2(L)),
        "D": width,
        "STAGES": 3,
        "PRECISION": precision(dtype),
    }
    return Tiles(constexprs, launch_options(warps, 2))


class Weights(NamedTuple):
    """The tensors of one unit, in the kernels' order; the fusion weights are None in the bidirectional form."""

    u_weight: Tensor
    u_bias: Tensor
    gate_weight: Tensor
    gate_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    fusion_weight: Tensor | None
    fusion_bias: Tensor | None
    head_weight: Tensor


def weight_arguments(weights: Weights) -> dict[str, Tensor]:
    """Contiguous weights by the kernels' names; an absent one is a tensor that they do not read."""
    present = {name: w.contiguous() for name, w in weights._asdict().items() if w is not None}
    return dict.fromkeys(weights._fields, weights.u_weight) | present


def head_arguments(temperatures: tuple[float, ...], L: int, lam: float, eps: float) -> dict[str, Any]:
    """The arguments of the pooled heads; an infinite temperature is the max head, the last one."""
    soft = tuple(t for t in temperatures if t != math.inf)
    return {
        "TEMPERATURES": soft,
        "MAX_HEAD": len(temperatures) - len(soft),
        "log_rows": math.log(L),
        "lam": lam,
        "eps": eps,
    }


def unit_stride(x: Tensor) -> Tensor:
    """``x`` with values of a row side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def context(
    glob: Tensor, local: Tensor, weights: Weights, temperatures: tuple[float, ...], lam: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts [n, d] in the dtype of ``glob`` [n, d], and what the backward pass needs.

    Args:
        local: [n, L, d]; temperatures: of the heads, the max head's is infinite; lam: lambda; eps: of the LayerNorm.

    Returns:
        the contexts; the attended rows and (T2V-only form) the fusion gate's arguments, [1 or 2, n, d] fp32; largest
        logits and sums of exponentials [2, n] fp32.
    """
    n, L, d = local.shape
    glob, local = unit_stride(glob), unit_stride(local)
    fusion = weights.fusion_weight is not None
    out = glob.new_empty(n, d)
    kept = glob.new_empty(1 + fusion, n, d, dtype=torch.float32)
    stats = glob.new_empty(2, n, dtype=torch.float32)
    tiles = forward_tiles(n, L, d, glob.dtype)
    cross_modal_fwd_kernel[(triton.cdiv(n, tiles.constexprs["ITEMS"]),)](
        glob=glob,
        local=local,
        out=out,
        context=kept[0],
        mixed=kept[-1],
        stats=stats,
        n=n,
        L=L,
        d=d,
        glob_stride=glob.stride(0),
        local_stride=local.stride(0),
        row_stride=local.stride(1),
        FUSION=fusion,
        **weight_arguments(weights),
        **head_arguments(temperatures, L, lam, eps),
        **tiles.constexprs,
        **tiles.options,
    )
    return out, kept, stats


_POINTERS = ("glob", "local", "out", "d_out", "d_glob", "d_local")
_FP32_POINTERS = ("context", "mixed", "stats", "d_products", "partial", *Weights._fields)
_STRIDES = ("glob_stride", "local_stride", "row_stride", "d_out_stride")
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def compile_cases(kernel: Any, tiles: Any, spill_bytes: dict[int, int]) -> list[CompileCase]:
    """``kernel`` for the paper's images (L = 50, d = 96), few and many, both forms, and d = 256; spills by d."""
    cases = []
    for dtype, name in _NAMES.items():
        signature = dict.fromkeys(("n", "L", "d", *_STRIDES), "i32") | dict.fromkeys(("log_rows", "lam", "eps"), "fp32")
        signature |= dict.fromkeys(_POINTERS, f"*{name}") | dict.fromkeys(_FP32_POINTERS, "*fp32")
        for n, d, fusion in ((128, 96, False), (100_000, 96, False), (100_000, 96, True), (100_000, 256, False)):
            constexprs, options = tiles(n, 50, d, dtype)
            constexprs = constexprs | {"TEMPERATURES": (2.0, 2.5, 3.5, 4.5), "MAX_HEAD": 1, "FUSION": fusion}
            label = f"{name} n={n} L=50 d={d}{' t2v' if fusion else ''}"
            own = {a: signature[a] for a in kernel.arg_names if a not in constexprs}
            wgmma = constexprs["ITEMS"] >= 64
            cases.append(
                CompileCase(
                    kernel, label, own, constexprs, options, ("d", *_STRIDES), spill_bytes=spill_bytes[d], wgmma=wgmma
                )
            )
    return cases


COMPILE_CASES = compile_cases(cross_modal_fwd_kernel, forward_tiles, {96: 8, 256: 0})
