"""Backward kernels of cross-modal contexts and their launcher.

Nothing is recomputed that needs a pass over ``local`` of its own: with the attended row and the softmax statistics that
the forward pass kept, one pass reads ``local`` and writes its gradient, 2 n L d values, which is the limit here. The
gradients of the products with U and F, 12 to 16 d bytes an item, go through memory to a second kernel, which gives
those of U and F. Sums over items are sums of a tile, or of a bounded number of parts, added up in one order: no
atomics, the same bits at every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cross_modal
from .cases import CompileCase, Tiles, launch_options
from .cross_modal import _LOG2_E, Weights, gate_and_normalise, load_vector, pool_heads, relu, times

_MOST_PARTS = 32


@triton.jit
def cross_modal_outer_kernel(
    x,  # [n, d], rows x_stride apart
    y,  # [n, d], rows y_stride apart
    partial,  # [parts, d, d] fp32: X^T Y of each part's rows
    n,
    d,
    x_stride,
    y_stride,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    ITEMS: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    part = tl.program_id(2)
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(part * ITEMS, n, tl.num_programs(2) * ITEMS):
        item = (start + tl.arange(0, ITEMS)).to(tl.int64)
        there = (item < n)[:, None]
        left = tl.load(x + item[:, None] * x_stride + i[None, :], mask=there & (i < d)[None, :], other=0.0)
        right = tl.load(y + item[:, None] * y_stride + j[None, :], mask=there & (j < d)[None, :], other=0.0)
        total = tl.dot(left.to(tl.float32).T, right.to(tl.float32), total, input_precision=PRECISION)
    inside = (i < d)[:, None] & (j < d)[None, :]
    tl.store(partial + part * d * d + i[:, None] * d + j[None, :], total, mask=inside)


@triton.jit
def cross_modal_bwd_kernel(
    d_out,  # [n, d], rows d_out_stride apart
    glob,  # [n, d], rows glob_stride apart
    local,  # [n, L, d], items local_stride apart, rows row_stride apart
    context,  # [n, d] fp32
    mixed,  # [n, d] fp32, with FUSION
    stats,  # [2, n] fp32
    u_weight,  # [d, d]
    u_bias,  # [d]
    gate_weight,  # [d]
    gate_bias,  # [1]
    norm_weight,  # [d]
    norm_bias,  # [d]
    fusion_weight,  # [d, d], with FUSION
    fusion_bias,  # [d], with FUSION
    head_weight,  # [K]
    d_glob,  # [n, d]
    d_local,  # [n, L, d]
    d_products,  # [4 + FUSION, n, d] fp32: gradients of U c, U g and g U, of g by itself, and of F (H + g')
    partial,  # [tiles, 6, d] fp32: sums for u_bias, gate_weight, norm_weight, norm_bias, fusion_bias, gate_bias
    n,
    L,
    d,
    log_rows,
    lam,
    eps,
    d_out_stride,
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
    tile = tl.program_id(0)
    item = (tile * ITEMS + tl.arange(0, ITEMS)).to(tl.int64)
    there = item < n
    column = tl.arange(0, D)
    inside = there[:, None] & (column < d)[None, :]
    at = item[:, None] * d + column[None, :]
    nothing = tl.zeros([ITEMS, D], tl.float32)
    glob_row = glob + item * glob_stride
    d_uc = d_products + item * d
    d_ug = d_products + (n + item) * d
    d_q = d_products + (2 * n + item) * d
    d_g = d_products + (3 * n + item) * d
    d_f = d_products + (4 * n + item) * d
    sums = partial + tile * 6 * d + column

    bias = load_vector(u_bias, d, D)
    a = relu(times(context + item * d, there, u_weight, nothing, d, True, D, PRECISION) + bias)
    r = relu(times(glob_row, there, u_weight, nothing, d, True, D, PRECISION) + bias)
    h, slope, whole = pool_heads(a, r, head_weight, L, log_rows, lam, TEMPERATURES, MAX_HEAD)
    if FUSION:
        alone = whole * r
        f = times(mixed + item * d, there, fusion_weight, nothing, d, True, D, PRECISION)
        f = tl.sigmoid(f + 2 * load_vector(fusion_bias, d, D))
        h = a * f + alone * (1 - f)

    g = tl.load(glob_row[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    gate, y, rstd = gate_and_normalise(g, h, gate_weight, gate_bias, there, d, eps, D)
    d_y = tl.load(d_out + item[:, None] * d_out_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(sums + 2 * d, tl.sum(d_y * y, 0), mask=column < d)
    tl.store(sums + 3 * d, tl.sum(d_y, 0), mask=column < d)
    d_y *= load_vector(norm_weight, d, D)
    d_h = d_y - (tl.sum(d_y, 1) / d)[:, None] - y * (tl.sum(d_y * y, 1) / d)[:, None]
    d_h = tl.where(inside, d_h * rstd[:, None], 0.0)
    d_gate = tl.sum(d_h * g, 1) * (1 - gate * gate)
    tl.store(sums + d, tl.sum(d_gate[:, None] * g, 0), mask=column < d)
    tl.store(partial + tile * 6 * d + 5 * d, tl.sum(d_gate, 0))
    tl.store(
        d_g[:, None] + column[None, :],
        d_h * gate[:, None] + d_gate[:, None] * load_vector(gate_weight, d, D),
        mask=inside,
    )

    if FUSION:
        to_f = d_h * (a - alone) * f * (1 - f)
        tl.store(sums + 4 * d, 2 * tl.sum(to_f, 0), mask=column < d)
        tl.store(d_f[:, None] + column[None, :], to_f, mask=inside)
        tl.debug_barrier()  # other threads of the program read it
        to_both = times(d_f, there, fusion_weight, nothing, d, False, D, PRECISION)
        to_a = d_h * f + to_both
        to_r = whole * (d_h * (1 - f) + to_both)
    else:
        to_a = d_h * slope
        to_r = d_h * (whole - slope)
    to_a = tl.where(a > 0, to_a, 0.0)
    to_r = tl.where(r > 0, to_r, 0.0)
    tl.store(sums, tl.sum(to_a + to_r, 0), mask=column < d)
    tl.store(d_uc[:, None] + column[None, :], to_a, mask=inside)
    tl.store(d_ug[:, None] + column[None, :], to_r, mask=inside)
    tl.debug_barrier()

    to_c = times(d_uc, there, u_weight, nothing, d, False, D, PRECISION)
    delta = tl.sum(to_c * tl.load(context + at, mask=inside, other=0.0), 1)
    q = times(glob_row, there, u_weight, nothing, d, False, D, PRECISION)
    top = tl.load(stats + item, mask=there, other=0.0)
    share = 1 / tl.load(stats + n + item, mask=there, other=1.0)
    to_q = nothing
    first = local + item[:, None] * local_stride + column[None, :]
    d_first = d_local + item[:, None] * L * d + column[None, :]
    for start in tl.range(0, L, ROWS, num_stages=STAGES):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        valid = (row < L)[:, None]
        both = valid[:, :, None] & inside[None]
        x = tl.load(first[None] + row[:, None, None] * row_stride, mask=both, other=0.0).to(tl.float32)
        # the base-2 logit as the forward pass has it: with huge logits its rounding counts, but no sum here need have
        # the order of the one there
        below = tl.sum(x * (q * _LOG2_E)[None], 2) - top[None]
        p = tl.where(valid, tl.exp2(tl.where(below > 0, 0.0, below)) * share[None], 0.0)
        to_logit = p * (tl.sum(x * to_c[None], 2) - delta[None])
        to_x = p[:, :, None] * to_c[None] + to_logit[:, :, None] * q[None]
        tl.store(d_first[None] + row[:, None, None] * d, to_x, mask=both)
        to_q += tl.sum(to_logit[:, :, None] * x, 0)
    tl.store(d_q[:, None] + column[None, :], to_q, mask=inside)
    tl.debug_barrier()

    to_g = tl.load(d_g[:, None] + column[None, :], mask=inside, other=0.0)
    to_g = times(d_ug, there, u_weight, to_g, d, False, D, PRECISION)
    to_g = times(d_q, there, u_weight, to_g, d, True, D, PRECISION)
    tl.store(d_glob + at, to_g, mask=inside)


def backward_tiles(n: int, L: int, d: int, dtype: torch.dtype) -> Tiles:
    """Tiles of :func:`cross_modal_bwd_kernel`: 8 values of [ITEMS, D] a thread, but 16 beyond d = 128, which spill."""
    return cross_modal.row_tiles(L, max(16, triton.next_power_of_2(d)), 8, 2048, 16, dtype)


def outer_tiles(d: int, dtype: torch.dtype) -> Tiles:
    """Tiles of :func:`cross_modal_outer_kernel`."""
    block = min(64, max(16, triton.next_power_of_2(d)))
    precision = cross_modal.precision(dtype)
    return Tiles({"BLOCK": block, "ITEMS": 32, "PRECISION": precision}, launch_options(4, 2))


def outer_sum(pairs: list[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """Sum of X^T Y [d, d] in fp32 over ``pairs`` of [n, d]; ``dtype``: of the features, for the precision."""
    n, d = pairs[0][0].shape
    tiles = outer_tiles(d, dtype)
    parts = min(triton.cdiv(n, tiles.constexprs["ITEMS"]), _MOST_PARTS)
    blocks = triton.cdiv(d, tiles.constexprs["BLOCK"])
    partial = pairs[0][0].new_empty(len(pairs), parts, d, d, dtype=torch.float32)
    for (x, y), own in zip(pairs, partial, strict=True):
        cross_modal_outer_kernel[(blocks, blocks, parts)](
            x=x,
            y=y,
            partial=own,
            n=n,
            d=d,
            x_stride=x.stride(0),
            y_stride=y.stride(0),
            **tiles.constexprs,
            **tiles.options,
        )
    return partial.sum((0, 1))


def gradients(
    gradient: Tensor,
    kept: Tensor,
    stats: Tensor,
    glob: Tensor,
    local: Tensor,
    weights: Weights,
    temperatures: tuple[float, ...],
    lam: float,
    eps: float,
) -> list[Tensor]:
    """Gradients of glob, local and every weight that is there but head_weight, each in its tensor's dtype and shape.

    Args:
        gradient: of the contexts, [n, d]; kept, stats: what :func:`cross_modal.context` returned beside them.
    """
    n, L, d = local.shape
    gradient, glob, local = (cross_modal.unit_stride(x) for x in (gradient, glob, local))
    fusion = weights.fusion_weight is not None
    d_glob = glob.new_empty(n, d)
    d_local = local.new_empty(n, L, d)
    tiles = backward_tiles(n, L, d, glob.dtype)
    count = triton.cdiv(n, tiles.constexprs["ITEMS"])
    d_products = glob.new_empty(4 + fusion, n, d, dtype=torch.float32)
    partial = glob.new_empty(count, 6, d, dtype=torch.float32)
    cross_modal_bwd_kernel[(count,)](
        d_out=gradient,
        glob=glob,
        local=local,
        context=kept[0],
        mixed=kept[-1],
        stats=stats,
        d_glob=d_glob,
        d_local=d_local,
        d_products=d_products,
        partial=partial,
        n=n,
        L=L,
        d=d,
        d_out_stride=gradient.stride(0),
        glob_stride=glob.stride(0),
        local_stride=local.stride(0),
        row_stride=local.stride(1),
        FUSION=fusion,
        **cross_modal.weight_arguments(weights),
        **cross_modal.head_arguments(temperatures, L, lam, eps),
        **tiles.constexprs,
        **tiles.options,
    )
    d_uc, d_ug, d_q = d_products[:3]
    u_weight = outer_sum([(d_uc, kept[0]), (d_ug, glob), (glob, d_q)], glob.dtype)
    u_bias, gate_weight, norm_weight, norm_bias, fusion_bias, gate_bias = partial.sum(0)
    sums = [u_weight, u_bias, gate_weight, gate_bias[:1], norm_weight, norm_bias]
    sums += [outer_sum([(d_products[4], kept[1])], glob.dtype), fusion_bias] if fusion else []
    own = [w for w in weights[:-1] if w is not None]
    return [d_glob, d_local, *(s.reshape(w.shape).to(w.dtype, copy=True) for s, w in zip(sums, own, strict=True))]


def _outer_cases() -> list[CompileCase]:
    cases = []
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        pointers = {"x": "*fp32", "y": f"*{name}", "partial": "*fp32"}
        integers = ("n", "d", "x_stride", "y_stride")
        for d in (96, 256):
            constexprs, options = outer_tiles(d, dtype)
            signature = pointers | dict.fromkeys(integers, "i32")
            aligned = ("d", "x_stride", "y_stride")
            label = f"{name} d={d}"
            cases.append(
                CompileCase(cross_modal_outer_kernel, label, signature, constexprs, options, aligned, spill_bytes=8)
            )
    return cases


COMPILE_CASES = cross_modal.compile_cases(cross_modal_bwd_kernel, backward_tiles, {96: 0, 256: 480}) + _outer_cases()
