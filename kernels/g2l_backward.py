"""Gradient of global-to-local scores by recomputation, in memory that grows with E + M (spec section 5.2).

For some mentions at a time: the column means w come from the forward kernel; what follows from them per pair (context,
LayerNorm, dot, and the slope dw of every column) are batched products of [m, E, Lm] matrices, which a BLAS does; then
one kernel gives the query's gradient and one the key's, each computing the attention again. Every sum has one order,
so that results are the same at every run.

In both kernels a row of a tile is an entity token, all tokens of all entities one after another without padding; the
tokens of MB mentions stand side by side as in the forward kernel.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cases import CompileCase
from .g2l import WEIGHTS_BYTES, weights
from .g2l_operands import TRITON_TYPES, Operands, flags, operands
from .g2l_tiles import backward_tiles, columns, load_keys, load_rows, stream_logits


@triton.jit
def _load_slopes(slope, mention, token, entity, M, E, Lm):
    """[rows, columns] of slope [M, E, Lm]; zero where there is no such mention or token."""
    there = (mention < M) & (token < Lm)
    at = slope + (mention.to(tl.int64)[None, :] * E + entity[:, None]) * Lm + token[None, :]
    return tl.load(at, mask=there[None, :], other=0.0)


@triton.jit
def _logit_gradients(
    s1,  # [ROWS, MB * N1] products q . k
    s2,  # [ROWS, MB * N2]; s1 where N2 = 0
    g1,  # [ROWS, MB * N1] slopes
    g2,
    valid1,  # [MB, N1]
    valid2,
    present,  # [ROWS]
    scale,
    MB: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    FULL: tl.constexpr,
):
    """Gradients of both parts' products: P (slope - P . slope), zero in rows that are not ``present``."""
    ROWS: tl.constexpr = s1.shape[0]
    s1 = s1.reshape(ROWS, MB, N1)
    g1 = g1.reshape(ROWS, MB, N1)
    if not FULL:
        s1 = tl.where(valid1[None], s1, float("-inf"))
    top = tl.max(s1, 2)
    if N2 > 0:
        s2 = s2.reshape(ROWS, MB, N2)
        g2 = g2.reshape(ROWS, MB, N2)
        if not FULL:
            s2 = tl.where(valid2[None], s2, float("-inf"))
        top = tl.maximum(top, tl.max(s2, 2))
    top = tl.where(present[:, None], top, float("inf"))[:, :, None] * scale  # all powers are 0
    p1 = tl.exp2(s1 * scale - top)
    total = tl.sum(p1, 2)
    mean = tl.sum(p1 * g1, 2)
    if N2 > 0:
        p2 = tl.exp2(s2 * scale - top)
        total += tl.sum(p2, 2)
        mean += tl.sum(p2 * g2, 2)
    weight = (1.0 / tl.where(present[:, None], total, 1.0))[:, :, None]
    mean = mean[:, :, None] * weight
    first = (p1 * weight * (g1 - mean)).reshape(ROWS, MB * N1)
    second = first
    if N2 > 0:
        second = (p2 * weight * (g2 - mean)).reshape(ROWS, MB * N2)
    return first, second


@triton.jit
def _product(left, right, total, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """total + left right, of gradients and features; EXACT: of fp32 operands, whatever the features are."""
    if not EXACT:
        total = tl.dot(left.to(tl.bfloat16), right.to(tl.bfloat16), total)
    elif left.shape[1] < 256:
        total = tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision=PRECISION)
    else:  # an eighth of the sum for each of 8 warps: all of it does not fit the registers of one
        left = tl.permute(left.to(tl.float32).reshape(left.shape[0], 8, left.shape[1] // 8), (1, 0, 2))
        right = right.to(tl.float32).reshape(8, right.shape[0] // 8, right.shape[1])
        total += tl.sum(tl.dot(left, right, input_precision=PRECISION), 0)
    return total


@triton.jit(do_not_specialize=["M", "E", "Le"])
def g2l_bwd_query_kernel(
    query,  # [E, Le, d]
    key,  # [M, Lm, d]
    slope,  # [M, E, Lm] fp32
    query_mask,  # [E, Le] uint8
    key_mask,  # [M, Lm] uint8
    grad,  # [E, Le, d] fp32, added to
    M,
    E,
    Le,
    Lm,
    d,
    scale,
    ROWS: tl.constexpr,
    MB: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    EVEN_D: tl.constexpr,
    STREAM: tl.constexpr,
    FULL: tl.constexpr,
    HAS_QUERY_MASK: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds what M mentions contribute to the gradient of ROWS rows of the query."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < E * Le
    last = tl.minimum(row, E * Le - 1)
    entity = (last // Le).to(tl.int64)
    present = inside
    if HAS_QUERY_MASK:
        present = inside & (tl.load(query_mask + last) != 0)
    q_row = query + last.to(tl.int64) * d
    out = grad + last.to(tl.int64) * d
    d1 = tl.program_id(1) * D1 + tl.arange(0, D1)
    q1 = load_rows(q_row, d1, d, EVEN_D).to(key.dtype.element_ty)
    total1 = load_rows(out, d1, d, EVEN_D)
    if D2 > 0:
        d2 = D1 + tl.arange(0, D2)
        q2 = load_rows(q_row, d2, d, EVEN_D).to(key.dtype.element_ty)
        total2 = load_rows(out, d2, d, EVEN_D)
    for first in range(0, M, MB):
        column1 = tl.arange(0, MB * N1)
        mention1, token1 = first + column1 // N1, column1 % N1
        k11 = load_keys(key, mention1, token1, M, Lm, d1, d, EVEN_D)
        g1 = _load_slopes(slope, mention1, token1, entity, M, E, Lm)
        valid1 = columns(mention1, token1, key_mask, M, Lm, N1, MB, HAS_KEY_MASK)
        if STREAM:
            s1 = stream_logits(q_row, key, mention1, token1, M, Lm, d, D1, EVEN_D, PRECISION)
        else:
            s1 = tl.dot(q1, k11, input_precision=PRECISION)
        if D2 > 0:
            k12 = load_keys(key, mention1, token1, M, Lm, d2, d, EVEN_D)
            s1 = tl.dot(q2, k12, s1, input_precision=PRECISION)
        if N2 > 0:
            column2 = tl.arange(0, MB * N2)
            mention2, token2 = first + column2 // N2, N1 + column2 % N2
            k21 = load_keys(key, mention2, token2, M, Lm, d1, d, EVEN_D)
            g2 = _load_slopes(slope, mention2, token2, entity, M, E, Lm)
            valid2 = columns(mention2, token2, key_mask, M, Lm, N2, MB, HAS_KEY_MASK)
            if STREAM:
                s2 = stream_logits(q_row, key, mention2, token2, M, Lm, d, D1, EVEN_D, PRECISION)
            else:
                s2 = tl.dot(q1, k21, input_precision=PRECISION)
            if D2 > 0:
                k22 = load_keys(key, mention2, token2, M, Lm, d2, d, EVEN_D)
                s2 = tl.dot(q2, k22, s2, input_precision=PRECISION)
            ds1, ds2 = _logit_gradients(s1, s2, g1, g2, valid1, valid2, present, scale, MB, N1, N2, FULL)
            total1 = _product(ds2, tl.trans(k21), total1, EXACT, PRECISION)
            if D2 > 0:
                total2 = _product(ds2, tl.trans(k22), total2, EXACT, PRECISION)
        else:
            ds1, _ = _logit_gradients(s1, s1, g1, g1, valid1, valid1, present, scale, MB, N1, N2, FULL)
        total1 = _product(ds1, tl.trans(k11), total1, EXACT, PRECISION)
        if D2 > 0:
            total2 = _product(ds1, tl.trans(k12), total2, EXACT, PRECISION)
    tl.store(out[:, None] + d1[None, :], total1, mask=inside[:, None] & (d1 < d)[None, :])
    if D2 > 0:
        tl.store(out[:, None] + d2[None, :], total2, mask=inside[:, None] & (d2 < d)[None, :])


@triton.jit(do_not_specialize=["M", "E", "Le"])
def g2l_bwd_key_kernel(
    query,  # [E, Le, d]
    key,  # [M, Lm, d]
    slope,  # [M, E, Lm] fp32
    query_mask,  # [E, Le] uint8
    key_mask,  # [M, Lm] uint8
    grad,  # [strips, M, Lm, d] fp32
    M,
    E,
    Le,
    Lm,
    d,
    scale,
    ROWS: tl.constexpr,
    MB: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    EVEN_D: tl.constexpr,
    STREAM: tl.constexpr,
    FULL: tl.constexpr,
    HAS_QUERY_MASK: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of MB mentions' keys from every ``strips``-th tile of the query's rows."""
    first = tl.program_id(0) * MB
    column1 = tl.arange(0, MB * N1)
    mention1, token1 = first + column1 // N1, column1 % N1
    valid1 = columns(mention1, token1, key_mask, M, Lm, N1, MB, HAS_KEY_MASK)
    d1 = tl.program_id(2) * D1 + tl.arange(0, D1)
    k11 = load_keys(key, mention1, token1, M, Lm, d1, d, EVEN_D)
    total11 = tl.zeros([MB * N1, D1], tl.float32)
    if D2 > 0:
        d2 = D1 + tl.arange(0, D2)
        k12 = load_keys(key, mention1, token1, M, Lm, d2, d, EVEN_D)
        total12 = tl.zeros([MB * N1, D2], tl.float32)
    if N2 > 0:
        column2 = tl.arange(0, MB * N2)
        mention2, token2 = first + column2 // N2, N1 + column2 % N2
        valid2 = columns(mention2, token2, key_mask, M, Lm, N2, MB, HAS_KEY_MASK)
        k21 = load_keys(key, mention2, token2, M, Lm, d1, d, EVEN_D)
        total21 = tl.zeros([MB * N2, D1], tl.float32)
        if D2 > 0:
            k22 = load_keys(key, mention2, token2, M, Lm, d2, d, EVEN_D)
            total22 = tl.zeros([MB * N2, D2], tl.float32)
    strips = tl.num_programs(1)
    for tile in range(tl.program_id(1), tl.cdiv(E * Le, ROWS), strips):
        row = tile * ROWS + tl.arange(0, ROWS)
        present = row < E * Le
        last = tl.minimum(row, E * Le - 1)
        entity = (last // Le).to(tl.int64)
        if HAS_QUERY_MASK:
            present = present & (tl.load(query_mask + last) != 0)
        q_row = query + last.to(tl.int64) * d
        q1 = load_rows(q_row, d1, d, EVEN_D).to(key.dtype.element_ty)
        g1 = _load_slopes(slope, mention1, token1, entity, M, E, Lm)
        if STREAM:
            s1 = stream_logits(q_row, key, mention1, token1, M, Lm, d, D1, EVEN_D, PRECISION)
        else:
            s1 = tl.dot(q1, k11, input_precision=PRECISION)
        if D2 > 0:
            q2 = load_rows(q_row, d2, d, EVEN_D).to(key.dtype.element_ty)
            s1 = tl.dot(q2, k12, s1, input_precision=PRECISION)
        if N2 > 0:
            g2 = _load_slopes(slope, mention2, token2, entity, M, E, Lm)
            if STREAM:
                s2 = stream_logits(q_row, key, mention2, token2, M, Lm, d, D1, EVEN_D, PRECISION)
            else:
                s2 = tl.dot(q1, k21, input_precision=PRECISION)
            if D2 > 0:
                s2 = tl.dot(q2, k22, s2, input_precision=PRECISION)
            ds1, ds2 = _logit_gradients(s1, s2, g1, g2, valid1, valid2, present, scale, MB, N1, N2, FULL)
            total21 = _product(tl.trans(ds2), q1, total21, EXACT, PRECISION)
            if D2 > 0:
                total22 = _product(tl.trans(ds2), q2, total22, EXACT, PRECISION)
        else:
            ds1, _ = _logit_gradients(s1, s1, g1, g1, valid1, valid1, present, scale, MB, N1, N2, FULL)
        total11 = _product(tl.trans(ds1), q1, total11, EXACT, PRECISION)
        if D2 > 0:
            total12 = _product(tl.trans(ds1), q2, total12, EXACT, PRECISION)
    out = grad + tl.program_id(1).to(tl.int64) * M * Lm * d
    _store_keys(out, total11, mention1, token1, M, Lm, d1, d)
    if D2 > 0:
        _store_keys(out, total12, mention1, token1, M, Lm, d2, d)
    if N2 > 0:
        _store_keys(out, total21, mention2, token2, M, Lm, d1, d)
        if D2 > 0:
            _store_keys(out, total22, mention2, token2, M, Lm, d2, d)


@triton.jit
def _store_keys(out, total, mention, token, M, Lm, dim, d):
    there = (mention < M) & (token < Lm)
    at = out + (mention.to(tl.int64) * Lm + token)[:, None] * d + dim[None, :]
    tl.store(at, total, mask=there[:, None] & (dim < d)[None, :])


def gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    bf16: bool,
) -> list[Tensor]:
    """Gradients of query, key, value, gate, norm_weight, norm_bias from ``gradient`` [M, E] of the scores.

    Arguments as of ``ops.g2l_scores``; each gradient in the dtype of its tensor.
    """
    x = operands(query, key, value, gate, norm_weight, norm_bias, eps, query_mask, key_mask, bf16)
    gradient, gate, norm_weight, norm_bias = (t.float() for t in (gradient, gate, norm_weight, norm_bias))
    entities, _, d = query.shape
    mentions, width, _ = key.shape
    # of w to that of the products: the share of a row, the softmax scale
    rows = query.shape[1] if query_mask is None else query_mask.sum(dim=1)[:, None]
    to_products = x.scale * math.log(2) / rows
    fp32 = {"device": key.device, "dtype": torch.float32}
    d_query = torch.zeros(query.shape, **fp32)
    d_key, d_value = (torch.empty(key.shape, **fp32) for _ in range(2))
    d_gain = torch.zeros(entities, d, **fp32)
    step = max(1, WEIGHTS_BYTES // (4 * entities * width))
    for start in range(0, mentions, step):
        m = slice(start, start + step)
        slope, d_value[m], more = _through_norm(x, m, gradient[m])
        d_gain += more
        slope *= to_products
        part = x._replace(key=x.key[m], key_mask=None if x.key_mask is None else x.key_mask[m])
        d_key[m] = _products_backward(part, slope, d_query)
    if bf16 and key.dtype == torch.float32:
        d_key *= math.log2(math.e) / math.sqrt(d)
    total = gradient.sum(dim=0)
    found = (
        d_query,
        d_key,
        d_value - d_value.mean(dim=-1, keepdim=True),
        d_gain * norm_weight + total[:, None] * norm_bias,
        (d_gain * gate).sum(dim=0),
        total @ gate,
    )
    return [g.to(t.dtype) for g, t in zip(found, (query, key, value, gate, norm_weight, norm_bias), strict=True)]


def _through_norm(x: Operands, m: slice, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of w [m, E, Lm], of the centred values [m, Lm, d], and of the gain [E, d] through some mentions.

    score = (c . gain) / sqrt(|c|^2 / d + eps) + ..., c = w V_c; |c|^2 = w V_c V_c^T w.
    """
    centred, d = x.centred[m], x.centred.shape[2]
    w = weights(x, m)
    along = torch.matmul(x.gain, centred.transpose(1, 2))  # [m, E, Lm]
    around = torch.bmm(w, torch.bmm(centred, centred.transpose(1, 2)))
    dot = (w * along).sum(dim=-1)
    rstd = ((w * around).sum(dim=-1).clamp_min(0) / d + x.eps).rsqrt()
    first = (gradient * rstd)[:, :, None]
    second = (gradient * dot * rstd**3 / d)[:, :, None]
    d_w = along.mul_(first).sub_(around.mul_(second))
    squares = torch.bmm((w * second).transpose(1, 2), w)  # [m, Lm, Lm]
    w *= first
    d_centred = torch.matmul(w.transpose(1, 2), x.gain) - torch.bmm(squares, centred)
    d_gain = w.transpose(0, 1).flatten(1) @ centred.flatten(0, 1)
    return d_w, d_centred, d_gain


def _products_backward(x: Operands, slope: Tensor, d_query: Tensor) -> Tensor:
    """The key's gradient [m, Lm, d] from slopes [m, E, Lm]; adds the query's to ``d_query`` [E, Le, d]."""
    mentions, width, d = x.key.shape
    entities, length, _ = x.query.shape
    exact = x.key.dtype != torch.bfloat16
    constexprs, options = backward_tiles(width, d, exact)
    row_tiles = triton.cdiv(entities * length, constexprs["ROWS"])
    groups = triton.cdiv(mentions, constexprs["MB"])
    sections = triton.cdiv(d, constexprs["D1"]) if constexprs["STREAM"] else 1
    strips = min(row_tiles, max(1, 512 // groups))
    d_key = torch.empty(strips, mentions, width, d, device=x.key.device, dtype=torch.float32)
    common = {
        "query": x.query,
        "key": x.key,
        "slope": slope,
        "query_mask": x.query_mask,
        "key_mask": x.key_mask,
        "M": mentions,
        "E": entities,
        "Le": length,
        "Lm": width,
        "d": d,
        "scale": x.scale,
        **constexprs,
        **flags(x.key, constexprs, x.query_mask is not None, x.key_mask is not None),
        "EXACT": exact,
        **options,
    }
    g2l_bwd_query_kernel[(row_tiles, sections)](grad=d_query, **common)
    g2l_bwd_key_kernel[(groups, strips, sections)](grad=d_key, **common)
    return d_key.sum(dim=0)


def compile_cases(
    features: torch.dtype, columns: int, d: int, *, masks: bool = False, spill_bytes: int = 192
) -> list[CompileCase]:
    """What :func:`_products_backward` launches for features of one dtype and these sizes."""
    key = torch.empty(1, columns, d, dtype=features, device="meta")
    exact = features != torch.bfloat16
    constexprs, options = backward_tiles(columns, d, exact)
    name = f"Lm {columns}, d {d}, {TRITON_TYPES[features][1:]}" + ", masks" * masks
    signature = (
        dict.fromkeys(("query", "key"), TRITON_TYPES[features])
        | {"slope": "*fp32", "query_mask": "*u8", "key_mask": "*u8", "grad": "*fp32", "scale": "fp32"}
        | dict.fromkeys(("M", "E", "Le", "Lm", "d"), "i32")
    )
    constexprs = constexprs | flags(key, constexprs, masks, masks) | {"EXACT": exact}
    aligned = ("d",) * (d % 16 == 0)
    rows = constexprs["ROWS"]
    tokens = [constexprs["MB"] * n for n in (constexprs["N1"], constexprs["N2"]) if n]
    few = rows < 64 or min(tokens) < 64  # in some of the key's products
    common = (name, signature, constexprs, options, aligned)
    return [
        CompileCase(g2l_bwd_query_kernel, *common, spill_bytes=spill_bytes, wgmma=rows >= 64),
        CompileCase(g2l_bwd_key_kernel, *common, spill_bytes=spill_bytes, hmma=few),
    ]


COMPILE_CASES = [
    *(c for k in TRITON_TYPES for c in compile_cases(k, 50, 96)),
    *(c for k in (torch.float32, torch.float16) for c in compile_cases(k, 40, 96)),
    # sm_90 and sm_100 spill nothing here; on sm_80 one mention at a time would spill nothing and pad more
    *compile_cases(torch.bfloat16, 40, 96, spill_bytes=384),
    *compile_cases(torch.bfloat16, 40, 96, masks=True, spill_bytes=448),
    *compile_cases(torch.bfloat16, 577, 96, spill_bytes=640),
    *compile_cases(torch.float32, 577, 96, spill_bytes=704),
    *compile_cases(torch.float32, 77, 256),
    *compile_cases(torch.float32, 13, 100),
]
