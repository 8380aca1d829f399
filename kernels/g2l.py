"""Global-to-local scores (spec sections 3.1 and 5.2): softmax attention of every entity token over every mention's
tokens, its column means, and LayerNorm and dot of the context vector, without one attention weight in memory.

A program scores ``ROWS`` entities against ``MB`` mentions. A row of its tiles is an *entity*: it walks over the tokens,
one token of all its entities a step, so that the column means add up where the logits stand, and no entity token is
padded, whatever their number. The tokens of the mentions stand side by side in two products of N1 and N2 columns a
mention, N1 + N2 >= Lm: 32 + 8 for 40 tokens, 64 for 50. The share of padding is 1 - Lm / (N1 + N2): none for CLIP's 40
text tokens, 22% for its 50 image tokens. Keys stay in shared memory for the whole walk, and every query tile that is
read serves MB mentions. Where keys do not fit (more than some 200 tokens, or wide ones), they are read again in
sections for every token, and the column means leave the kernel, for some mentions at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cases import CompileCase, Tiles
from .g2l_operands import TRITON_TYPES, Operands, flags
from .g2l_tiles import columns, forward_tiles, load_keys, load_rows, stream_logits

WEIGHTS_BYTES = 64 << 20  # of column means, where they are held in memory


@triton.jit
def _joint(x, y, MAX: tl.constexpr, APART: tl.constexpr):
    """Maximum or sum [ROWS, MB] over both parts. Columns that one thread holds come first, of both parts, then those
    that threads share; APART: where warps share them, that would only move them."""
    if APART:
        return tl.maximum(tl.max(x, 2), tl.max(y, 2)) if MAX else tl.sum(x, 2) + tl.sum(y, 2)
    x = x.reshape(x.shape[0], x.shape[1], x.shape[2] // 8, 8)
    y = y.reshape(y.shape[0], y.shape[1], y.shape[2] // 8, 8)
    return tl.max(tl.maximum(tl.max(x, 2), tl.max(y, 2)), 2) if MAX else tl.sum(tl.sum(x, 2) + tl.sum(y, 2), 2)


@triton.jit(do_not_specialize=["M", "E", "Le"])
def g2l_fwd_kernel(
    query,  # [U, Le, d]
    key,  # [M, Lm, d]
    centred,  # [M, Lm, d] fp32, value less its mean over d
    gain,  # [E, d] fp32, gate times LayerNorm's weight; PAIRS: [U, d]
    shift,  # [E] fp32, gate . LayerNorm's bias; PAIRS: [U]
    query_mask,  # [U, Le] uint8
    key_mask,  # [M, Lm] uint8
    rows,  # [E] int64
    tile_mention,  # [tiles] int64
    out,  # [M, E]; PAIRS: [tiles * ROWS]; WEIGHTS: the same and Lm
    M,
    E,
    Le,
    Lm,
    d,
    scale,  # of q . k, times log2(e)
    eps,
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
    HAS_ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores of MB mentions and ROWS entities; PAIRS: of one mention and the ``rows`` of its tile; WEIGHTS: only w."""
    groups = tl.cdiv(M, MB)
    if PAIRS:
        tile = tl.program_id(0)
        first = tl.load(tile_mention + tile).to(tl.int32)
    else:
        tile = tl.program_id(0) // groups
        first = (tl.program_id(0) % groups) * MB
    place = tile * ROWS + tl.arange(0, ROWS)
    entity = tl.minimum(place, E - 1).to(tl.int64)
    owner = entity
    if HAS_ROWS:
        entity = tl.load(rows + entity)
    if PAIRS:
        owner = entity
    column1 = tl.arange(0, MB * N1)
    mention1, token1 = first + column1 // N1, column1 % N1
    d1 = tl.arange(0, D1)
    if N2 > 0:
        column2 = tl.arange(0, MB * N2)
        mention2, token2 = first + column2 // N2, N1 + column2 % N2
        w2 = tl.zeros([ROWS, MB, N2], tl.float32)
    if not STREAM:
        k11 = load_keys(key, mention1, token1, M, Lm, d1, d, EVEN_D)
        if N2 > 0:
            k21 = load_keys(key, mention2, token2, M, Lm, d1, d, EVEN_D)
        if D2 > 0:
            d2 = D1 + tl.arange(0, D2)
            k12 = load_keys(key, mention1, token1, M, Lm, d2, d, EVEN_D)
            if N2 > 0:
                k22 = load_keys(key, mention2, token2, M, Lm, d2, d, EVEN_D)
    w1 = tl.zeros([ROWS, MB, N1], tl.float32)
    if not FULL:
        valid1 = columns(mention1, token1, key_mask, M, Lm, N1, MB, HAS_KEY_MASK)
        if N2 > 0:
            valid2 = columns(mention2, token2, key_mask, M, Lm, N2, MB, HAS_KEY_MASK)
    share = tl.zeros([ROWS], tl.float32)
    q_rows = query + entity * Le * d
    for t in range(Le):
        q_row = q_rows + t * d
        if STREAM:
            s1 = stream_logits(q_row, key, mention1, token1, M, Lm, d, D1, EVEN_D, PRECISION)
            if N2 > 0:
                s2 = stream_logits(q_row, key, mention2, token2, M, Lm, d, D1, EVEN_D, PRECISION)
        else:
            q1 = load_rows(q_row, d1, d, EVEN_D).to(key.dtype.element_ty)
            s1 = tl.dot(q1, k11, input_precision=PRECISION)
            if N2 > 0:
                s2 = tl.dot(q1, k21, input_precision=PRECISION)
            if D2 > 0:
                q2 = load_rows(q_row, d2, d, EVEN_D).to(key.dtype.element_ty)
                s1 = tl.dot(q2, k12, s1, input_precision=PRECISION)
                if N2 > 0:
                    s2 = tl.dot(q2, k22, s2, input_precision=PRECISION)
        s1 = s1.reshape(ROWS, MB, N1)
        if not FULL:
            s1 = tl.where(valid1[None], s1, float("-inf"))
        if N2 > 0:
            s2 = s2.reshape(ROWS, MB, N2)
            if not FULL:
                s2 = tl.where(valid2[None], s2, float("-inf"))
        top = _joint(s1, s2, True, STREAM) if N2 > 0 else tl.max(s1, 2)
        if HAS_QUERY_MASK:  # a token that takes no part may hold anything: no power of its logits is computed
            present = tl.load(query_mask + entity * Le + t) != 0
            top = tl.where(present[:, None], top, float("inf"))
        top = top[:, :, None] * scale
        # one rounding: the row's maximum is off zero by up to 2^-24 of itself, as all are, which the division undoes;
        # a logit of 2^31 would overflow
        p1 = tl.exp2(s1 * scale - top)
        if N2 > 0:
            p2 = tl.exp2(s2 * scale - top)
            total = _joint(p1, p2, False, STREAM)
        else:
            total = tl.sum(p1, 2)
        if HAS_QUERY_MASK:
            total = tl.where(present[:, None], total, 1.0)
            share += tl.where(present, 1.0, 0.0)
        weight = 1.0 / total
        w1 += p1 * weight[:, :, None]
        if N2 > 0:
            w2 += p2 * weight[:, :, None]
    if not HAS_QUERY_MASK:
        share += Le
    mean = (1.0 / share)[:, None, None]
    w1 = tl.permute(w1 * mean, (1, 0, 2))  # [MB, ROWS, N1]
    if N2 > 0:
        w2 = tl.permute(w2 * mean, (1, 0, 2))
    mention = first + tl.arange(0, MB)
    inside = (mention < M)[:, None] & (place < E)[None, :]
    if WEIGHTS:
        if PAIRS:
            line = place[None, :] + tl.zeros([MB, ROWS], tl.int64)
        else:
            line = mention.to(tl.int64)[:, None] * E + place[None, :]
        at = out + line[:, :, None] * Lm
        t1 = tl.arange(0, N1)[None, None, :]
        tl.store(at + t1, w1, mask=inside[:, :, None] & (t1 < Lm))
        if N2 > 0:
            t2 = N1 + tl.arange(0, N2)[None, None, :]
            tl.store(at + t2, w2, mask=inside[:, :, None] & (t2 < Lm))
    else:
        dot = tl.zeros([MB, ROWS], tl.float32)
        square = tl.zeros([MB, ROWS], tl.float32)
        for start in range(0, d, 32):
            dim = start + tl.arange(0, 32)
            context = _context(w1, centred, mention, 0, M, Lm, dim, d, N1, MB == 1, PRECISION)
            if N2 > 0:
                context += _context(w2, centred, mention, N1, M, Lm, dim, d, N2, MB == 1, PRECISION)
            g = tl.load(gain + owner[:, None] * d + dim[None, :], mask=(dim < d)[None, :], other=0.0)
            dot += tl.sum(context * g[None], 2)
            square += tl.sum(context * context, 2)
        score = dot / tl.sqrt_rn(square / d + eps) + tl.load(shift + owner)[None, :]
        if PAIRS:
            at = out + place[None, :] + tl.zeros([MB, ROWS], tl.int64)
        else:
            at = out + mention.to(tl.int64)[:, None] * E + place[None, :]
        tl.store(at, score.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _context(w, centred, mention, offset, M, Lm, dim, d, N: tl.constexpr, ONE: tl.constexpr, PRECISION: tl.constexpr):
    """[MB, ROWS, len(dim)], what a part of w [MB, ROWS, N] adds to the centred context vectors."""
    if N < 16:  # a product sums over 16 at least: every second column is none
        w = tl.join(w, tl.zeros_like(w)).reshape(w.shape[0], w.shape[1], 2 * N)
        place = tl.arange(0, 2 * N)
        token, there = offset + place // 2, place % 2 == 0
    else:
        token = offset + tl.arange(0, N)
        there = token >= 0
    there = (mention < M)[:, None] & (there & (token < Lm))[None, :]
    at = centred + (mention.to(tl.int64)[:, None] * Lm + token[None, :])[:, :, None] * d + dim[None, None, :]
    value = tl.load(at, mask=there[:, :, None] & (dim < d)[None, None, :], other=0.0)
    if ONE:  # a product of matrices becomes better code than a batch of one
        w = w.reshape(w.shape[1], w.shape[2])
        value = value.reshape(value.shape[1], value.shape[2])
        context = tl.dot(w, value, input_precision=PRECISION)[None]
    else:
        context = tl.dot(w, value, input_precision=PRECISION)
    return context


def scores(x: Operands, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Scores [M, E] of all mentions and the entities ``rows`` [E] int64 (those of the operands), None = all."""
    mentions, entities = x.key.shape[0], x.query.shape[0] if rows is None else rows.shape[0]
    if not _tiles(x).constexprs["STREAM"]:
        out = torch.empty(mentions, entities, device=x.key.device, dtype=dtype)
        return _launch(x, out, entities, rows=rows)
    step = max(1, WEIGHTS_BYTES // (4 * entities * x.key.shape[1]))
    strips = [
        _through_norm(weights(x, slice(m, m + step), rows), x.centred[m : m + step], x.gain, x.eps) + x.shift
        for m in range(0, mentions, step)
    ]
    return torch.cat(strips).to(dtype)


def weights(x: Operands, mentions: slice, rows: Tensor | None = None) -> Tensor:
    """Column means w [m, E, Lm] fp32 of the attention of the entities over some mentions (spec section 5.2)."""
    key, mask = x.key[mentions], None if x.key_mask is None else x.key_mask[mentions]
    entities = x.query.shape[0] if rows is None else rows.shape[0]
    out = torch.empty(key.shape[0], entities, key.shape[1], device=key.device, dtype=torch.float32)
    return _launch(x._replace(key=key, key_mask=mask), out, entities, rows=rows, weights=True)


def pairs(x: Operands, mention: Tensor, entity: Tensor, dtype: torch.dtype) -> Tensor:
    """Scores [P] of the pairs (mention[i], entity[i]), [P] int64 each, P >= 1."""
    tiles = _tiles(x, 1)
    height = tiles.constexprs["ROWS"]
    order = mention.argsort(stable=True)
    own = mention[order]
    # not bincount: it waits for the GPU
    end = torch.searchsorted(own, torch.arange(x.key.shape[0], device=own.device), right=True)
    count = end.diff(prepend=end.new_zeros(1))
    padded = (count + height - 1) // height * height  # the pairs of a mention fill whole tiles
    shift = (padded.cumsum(0) - padded) - (end - count)
    place = torch.arange(len(own), device=own.device) + shift[own]
    # no more than one tile a mention that is not full: a bound that needs no look at the counts
    most = (len(order) + min(len(order), x.key.shape[0]) * (height - 1)) // height
    rows = entity.new_zeros(most * height).index_put((place,), entity[order])
    tile_mention = mention.new_zeros(most).index_put((place // height,), own)
    if tiles.constexprs["STREAM"]:
        out = _stream_pairs(x, tile_mention, rows, tiles)
    else:
        out = torch.empty(len(rows), device=x.key.device, dtype=torch.float32)
        _launch(x, out, len(rows), rows=rows, tile_mention=tile_mention, tiles=tiles)
    return out.new_empty(len(order)).index_put((order,), out[place]).to(dtype)


def _stream_pairs(x: Operands, tile_mention: Tensor, rows: Tensor, tiles: Tiles) -> Tensor:
    """Scores of the ``rows`` [tiles * height] of tiles of one mention each, through column means in memory."""
    height, width = tiles.constexprs["ROWS"], x.key.shape[1]
    step = max(1, WEIGHTS_BYTES // (4 * (height + x.key.shape[2]) * width))
    strips = []
    for own, line in zip(tile_mention.split(step), rows.view(-1, height).split(step), strict=True):
        w = torch.empty(*line.shape, width, device=rows.device, dtype=torch.float32)
        _launch(x, w, line.numel(), rows=line.flatten(), tile_mention=own, tiles=tiles, weights=True)
        strips.append(_through_norm(w, x.centred[own], x.gain[line], x.eps) + x.shift[line])
    return torch.cat(strips).flatten()


def _through_norm(w: Tensor, centred: Tensor, gain: Tensor, eps: float) -> Tensor:
    """LayerNorm and dot [m, E] of the contexts w V_c, but for the shift; w [m, E, Lm]."""
    context = torch.bmm(w, centred)
    return (context * gain).sum(dim=-1) * (context.square().mean(dim=-1) + eps).rsqrt()


def _tiles(x: Operands, most: int = 4) -> Tiles:
    return forward_tiles(x.key.shape[1], x.key.shape[2], x.key.element_size(), most)


def _launch(
    x: Operands,
    out: Tensor,
    entities: int,
    rows: Tensor | None = None,
    tile_mention: Tensor | None = None,
    tiles: Tiles | None = None,
    weights: bool = False,
) -> Tensor:
    constexprs, options = tiles or _tiles(x)
    mentions, columns, d = x.key.shape
    groups = 1 if tile_mention is not None else triton.cdiv(mentions, constexprs["MB"])
    g2l_fwd_kernel[(triton.cdiv(entities, constexprs["ROWS"]) * groups,)](
        query=x.query,
        key=x.key,
        centred=x.centred,
        gain=x.gain,
        shift=x.shift,
        query_mask=x.query_mask,
        key_mask=x.key_mask,
        rows=rows,
        tile_mention=tile_mention,
        out=out,
        M=mentions,
        E=entities,
        Le=x.query.shape[1],
        Lm=columns,
        d=d,
        scale=x.scale,
        eps=x.eps,
        **constexprs,
        **flags(x.key, constexprs, x.query_mask is not None, x.key_mask is not None),
        HAS_ROWS=rows is not None,
        PAIRS=tile_mention is not None,
        WEIGHTS=weights,
        **options,
    )
    return out


def compile_case(
    query: torch.dtype,
    key: torch.dtype,
    columns: int,
    d: int,
    *,
    masks: bool = False,
    form: str = "scores",
    spill_bytes: int = 256,
) -> CompileCase:
    """What :func:`_launch` launches for these dtypes and sizes; form: ``scores``, ``rows``, ``pairs``, ``weights``."""
    empty = torch.empty(1, columns, d, dtype=key, device="meta")
    constexprs, options = forward_tiles(columns, d, empty.element_size(), 1 if form == "pairs" else 4)
    forms = {
        "HAS_ROWS": form in ("rows", "pairs"),
        "PAIRS": form == "pairs",
        "WEIGHTS": form == "weights" or bool(constexprs["STREAM"]),
    }
    pointers = {"centred": "*fp32", "gain": "*fp32", "shift": "*fp32", "query_mask": "*u8", "key_mask": "*u8"}
    return CompileCase(
        g2l_fwd_kernel,
        f"{form}, Lm {columns}, d {d}, {TRITON_TYPES[query][1:]} x {TRITON_TYPES[key][1:]}" + ", masks" * masks,
        {"query": TRITON_TYPES[query], "key": TRITON_TYPES[key], "rows": "*i64", "tile_mention": "*i64", "out": "*fp32"}
        | pointers
        | dict.fromkeys(("M", "E", "Le", "Lm", "d"), "i32")
        | {"scale": "fp32", "eps": "fp32"},
        constexprs | flags(empty, constexprs, masks, masks) | forms,
        options,
        aligned=("d",) * (d % 16 == 0),
        spill_bytes=spill_bytes,
        wgmma=constexprs["ROWS"] >= 64,
        hmma=constexprs["MB"] > 1,  # contexts, a batch of mentions
    )


_HALF, _FULL = torch.bfloat16, torch.float32
COMPILE_CASES = [
    *(compile_case(q, k, n, 96) for n in (40, 50) for q, k in ((_HALF, _HALF), (_FULL, _FULL), (_HALF, _FULL))),
    compile_case(torch.float16, torch.float16, 40, 96),
    *(compile_case(k, k, n, 96, form="pairs") for n, k in ((40, _HALF), (40, _FULL), (50, _FULL))),
    *(compile_case(k, k, n, 96, form="weights") for n, k in ((40, _HALF), (50, _HALF), (40, _FULL))),
    *(compile_case(q, _HALF, 40, 96, form="rows") for q in (_HALF, _FULL)),
    compile_case(_HALF, _HALF, 40, 96, masks=True),
    compile_case(_FULL, _FULL, 50, 96, masks=True, spill_bytes=288),
    # a CLIP of 336 pixels and patches of 14, the widest model, and an odd one
    compile_case(_HALF, _HALF, 577, 96),
    compile_case(_FULL, _FULL, 577, 256),
    compile_case(_FULL, _FULL, 40, 256),
    compile_case(_HALF, _HALF, 77, 256),
    compile_case(_FULL, _FULL, 13, 100, spill_bytes=544),
]
