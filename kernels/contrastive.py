"""Contrastive losses of B pairs in one pass: ICL, InfoNCE and MCLET, forward.

The 2B rows are the entities' and then the mentions'. The loss of anchor i is log sum_j exp(l_ij) - l_ii', i' its
partner on the other side, with logits

    l_ij = scale <x_i, x_j> / (|x_i| |x_j|) + log weight     (scale and weight of j's side; norms where asked for),

without the weight for j = i', and for j = i either left out or the constant 0. l is symmetric: a tile of products
serves its rows as anchors and its columns as anchors. No matrix of logits exists: of each pair of row blocks a program
keeps the maxima and sums of its rows and columns, in places of its own, which are merged in a fixed order.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contrastive_tiles import ROW_OPTIONS, Terms, precision_of, tile_of

# Blocks of rows on one side: the partial results are [2 x blocks, 2B], and 2 x blocks x (2 x blocks + 1) / 2 programs
# keep the largest GPU busy for many rounds.
_BLOCKS = 32
ROWS = 32  # of a program that goes over rows
EPS = tl.constexpr(1e-12)  # of F.normalize
LN2 = tl.constexpr(math.log(2))


@triton.jit
def contrastive_norm_kernel(
    entity,  # [B, d]
    mention,  # [B, d]
    inverse,  # [2B] fp32
    B,
    d,
    ROWS: tl.constexpr,
    BK: tl.constexpr,
):
    """1 / max(norm, eps) of every row. Programs: blocks of rows x sides."""
    side = tl.program_id(1)
    x = entity
    if side == 1:
        x = mention
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    square = tl.zeros([ROWS], tl.float32)
    for start in range(0, d, BK):
        k = start + tl.arange(0, BK)
        at = row.to(tl.int64)[:, None] * d + k[None, :]
        value = tl.load(x + at, mask=(row < B)[:, None] & (k < d)[None, :], other=0.0).to(tl.float32)
        square += tl.sum(value * value, axis=1)
    # rounded exactly: the backward pass knows rows shorter than eps by the value
    norm = tl.maximum(tl.sqrt_rn(square), EPS)
    tl.store(inverse + side * B + row, tl.div_rn(tl.full([ROWS], 1.0, tl.float32), norm), mask=row < B)


@triton.jit
def load_rows(x, row, start, d, BK: tl.constexpr):
    """[rows, BK] of x [B, d] from column ``start``; zero beyond d."""
    k = start + tl.arange(0, BK)
    at = x + row.to(tl.int64)[:, None] * d + k[None, :]
    return tl.load(at, mask=(k < d)[None, :], other=0.0)


@triton.jit
def scaled_products(x, i, y, j, x_inverse, y_inverse, d, scale, BK: tl.constexpr, PRECISION: tl.constexpr):
    """``scale`` times the products of rows i of x and j of y, which the norms' inverses divide unless None."""
    product = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
    for start in range(0, d, BK):
        row, column = load_rows(x, i, start, d, BK), load_rows(y, j, start, d, BK)
        product = tl.dot(row, tl.trans(column), product, input_precision=PRECISION)
    if x_inverse is not None:
        product = product * (tl.load(x_inverse + i) * scale)[:, None] * tl.load(y_inverse + j)[None, :]
    else:
        product = product * scale
    return product


@triton.jit
def weighted(product, on_diagonal, same, shift, self_logit):
    """Logits of a tile in base 2: products of the sides' scale plus log weight, but on the tile's diagonal where that
    is the matrix's."""
    if on_diagonal:
        lane = tl.arange(0, product.shape[0])
        alone = tl.where(same, self_logit, product)
        logit = tl.where(lane[:, None] == lane[None, :], alone, product + shift)
    else:
        logit = product + shift
    return logit


@triton.jit
def without_equal(logit, duplicates, i, j):
    """-inf for pairs of different rows of one gold entity, where ``duplicates`` holds entities."""
    if duplicates is not None and duplicates.dtype.element_ty == tl.int32:
        pair = tl.load(duplicates + i)[:, None] == tl.load(duplicates + j)[None, :]
        logit = tl.where(pair & (i[:, None] != j[None, :]), float("-inf"), logit)
    return logit


@triton.jit
def without_marked(value, nothing, duplicates, i, j, B):
    """``nothing`` for pairs of anchor i and column j, of shapes that broadcast, that ``duplicates`` marks."""
    if duplicates is not None and duplicates.dtype.element_ty == tl.uint8:
        marked = tl.load(duplicates + i.to(tl.int64) * B + j) != 0
        value = tl.where(marked & (i != j), nothing, value)
    return value


@triton.jit
def accumulate(top, total, logit, axis: tl.constexpr, BOUNDED: tl.constexpr):
    """Add a tile's exponentials to sums relative to ``top``. BOUNDED: ``logit`` holds exponentials."""
    if BOUNDED:
        total += tl.sum(logit, axis=axis)
    else:
        new = tl.maximum(top, tl.max(logit, axis=axis))
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp2(top - safe) + tl.sum(tl.exp2(logit - tl.expand_dims(safe, axis)), axis=axis)
        top = new
    return top, total


@triton.jit
def contrastive_fwd_kernel(
    entity,  # [B, d]
    mention,  # [B, d]
    inverse,  # [2B] fp32, or None
    duplicates,  # [B] int32 or [B, B] uint8, or None
    top,  # [2 groups, 2B] fp32, -inf
    total,  # [2 groups, 2B] fp32, 0
    positive,  # [B] fp32
    B,
    d,
    first,  # anchors: rows first to last - 1 of each side
    last,
    groups,  # on one side
    G,  # tiles of a group
    other_scale,
    other_shift,
    same_scale,
    same_shift,
    self_logit,
    bound,
    SAME: tl.constexpr,
    BOUNDED: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Partial maxima and sums of a pair a <= b of groups of rows: of a's rows over b's columns in place (b, rows of a),
    of b's rows over a's in (a, rows of b). Programs: folded triangle of such pairs, without SAME those of the sides."""
    across, down = tl.program_id(0), tl.program_id(1)
    if SAME:
        a = tl.where(across > down, down, 2 * groups - 1 - down)
        b = tl.where(across > down, across - 1, 2 * groups - 1 - across)
    else:
        a = down
        b = groups + across
    side_a, side_b = a // groups, b // groups
    x, y = entity, entity
    if side_a == 1:
        x = mention
    if side_b == 1:
        y = mention
    x_inverse, y_inverse = None, None
    if inverse is not None:
        x_inverse, y_inverse = inverse + side_a * B, inverse + side_b * B
    tiles = tl.cdiv(B, BT)
    begin, end = (b % groups) * G, tl.minimum((b % groups + 1) * G, tiles)
    same = side_a == side_b
    scale = tl.where(same, same_scale, other_scale)
    shift = tl.where(same, same_shift, other_shift)
    row_place = (b.to(tl.int64) * 2 + side_a) * B
    column_place = (a.to(tl.int64) * 2 + side_b) * B
    lane = tl.arange(0, BT)

    for r in range((a % groups) * G, tl.minimum((a % groups + 1) * G, tiles)):
        i = r * BT + lane
        i_safe = tl.minimum(i, B - 1)
        row_top = tl.full([BT], float("-inf"), tl.float32)
        row_total = tl.zeros([BT], tl.float32)
        # a row tile without anchors serves those among its columns
        anchors = (r * BT < last) & (r * BT + BT > first)
        low = tl.where(anchors, begin, tl.maximum(begin, first // BT))
        high = tl.where(anchors, end, tl.minimum(end, tl.cdiv(last, BT)))
        for c in range(low, high):
            j = c * BT + lane
            j_safe = tl.minimum(j, B - 1)
            product = scaled_products(x, i_safe, y, j_safe, x_inverse, y_inverse, d, scale, BK, PRECISION)
            if (r == c) & (side_a != side_b):
                own = tl.where(lane[:, None] == lane[None, :], product, 0.0)
                tl.store(positive + i, tl.sum(own, axis=1), mask=i < B)
            logit = weighted(product, r == c, same, shift, self_logit)
            if (r == tiles - 1) | (c == tiles - 1):
                logit = tl.where((i < B)[:, None] & (j < B)[None, :], logit, float("-inf"))
            logit = without_equal(logit, duplicates, i_safe, j_safe)
            nothing = float("-inf")
            if BOUNDED:
                logit = tl.exp2(logit - bound)
                nothing = 0.0
            of_rows = without_marked(logit, nothing, duplicates, i_safe[:, None], j_safe[None, :], B)
            of_columns = without_marked(logit, nothing, duplicates, j_safe[None, :], i_safe[:, None], B)
            row_top, row_total = accumulate(row_top, row_total, of_rows, 1, BOUNDED)
            if a != b:
                place = column_place + j
                column_top = row_top
                if not BOUNDED:
                    column_top = tl.load(top + place, mask=j < B, other=float("-inf"))
                column_total = tl.load(total + place, mask=j < B, other=0.0)
                column_top, column_total = accumulate(column_top, column_total, of_columns, 0, BOUNDED)
                if not BOUNDED:
                    tl.store(top + place, column_top, mask=j < B)
                tl.store(total + place, column_total, mask=j < B)
        if not BOUNDED:
            tl.store(top + row_place + i, row_top, mask=i < B)
        tl.store(total + row_place + i, row_total, mask=i < B)
        # the next row tile reads what other threads of the program stored for its columns
        tl.debug_barrier()


@triton.jit
def contrastive_combine_kernel(
    top,  # [places, 2B] fp32
    total,  # [places, 2B] fp32
    positive,  # [B] fp32
    lse,  # [2B] fp32, base 2
    loss,  # [2B] fp32
    B,
    first,
    last,
    places,
    bound,
    BOUNDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Merge the partial results of every row, in order; rows that are no anchors get a loss of 0 and lse = inf."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = at < 2 * B
    row_top = tl.full([ROWS], float("-inf"), tl.float32)
    row_total = tl.zeros([ROWS], tl.float32)
    here = at.to(tl.int64)
    for _ in range(places):
        more = tl.load(total + here, mask=valid, other=0.0)
        if BOUNDED:
            row_total += more
        else:
            new_top = tl.load(top + here, mask=valid, other=float("-inf"))
            new = tl.maximum(row_top, new_top)
            safe = tl.where(new == float("-inf"), 0.0, new)
            row_total = row_total * tl.exp2(row_top - safe) + more * tl.exp2(new_top - safe)
            row_top = new
        here += 2 * B
    if BOUNDED:
        row_top = tl.zeros([ROWS], tl.float32) + bound
    row = at % B
    anchor = valid & (row >= first) & (row < last)
    found = row_top + tl.log2(tl.where(anchor, row_total, 1.0))
    difference = found - tl.load(positive + row, mask=valid, other=0.0)
    tl.store(lse + at, tl.where(anchor, found, float("inf")), mask=valid)
    tl.store(loss + at, tl.where(anchor, difference * LN2, 0.0), mask=valid)


class Saved(NamedTuple):
    """What the backward pass needs: lse [2B] in base 2, inf for rows that are no anchors, and 1 / norm [2B] or None."""

    lse: Tensor
    inverse: Tensor | None


def forward(
    entity: Tensor,  # [B, d]
    mention: Tensor,  # [B, d]
    duplicates: Tensor | None,  # [B] int64 or [B, B] bool
    first: int,
    last: int,
    terms: Terms,
) -> tuple[Tensor, Saved]:
    """Mean loss [] fp32 of the anchors first to last - 1 of both sides."""
    entity, mention, duplicates = operands(entity, mention, duplicates)
    batch, d = entity.shape
    tile = tile_of(batch, d, entity.dtype, is_mask(duplicates))
    inverse = norms(entity, mention) if terms.normalise else None
    size = triton.cdiv(triton.cdiv(batch, tile.size), _BLOCKS)
    groups = triton.cdiv(triton.cdiv(batch, tile.size), size)
    bound = terms.bound()
    new = partial(torch.empty, dtype=torch.float32, device=entity.device)
    top = None if bound is not None else new(2 * groups, 2 * batch).fill_(-math.inf)
    total, positive = new(2 * groups, 2 * batch).zero_(), new(batch)
    same = terms.same_scale is not None
    contrastive_fwd_kernel[(2 * groups + 1 if same else groups, groups)](
        entity=entity,
        mention=mention,
        inverse=inverse,
        duplicates=duplicates,
        top=top,
        total=total,
        positive=positive,
        B=batch,
        d=d,
        first=first,
        last=last,
        groups=groups,
        G=size,
        **terms.scalars(),
        self_logit=0.0 if terms.self_term else -math.inf,
        bound=bound or 0.0,
        SAME=same,
        BOUNDED=bound is not None,
        BT=tile.size,
        BK=tile.depth,
        PRECISION=precision_of(entity.dtype),
        **tile.options,
    )
    lse, loss = new(2 * batch), new(2 * batch)
    contrastive_combine_kernel[(triton.cdiv(2 * batch, ROWS),)](
        top=top,
        total=total,
        positive=positive,
        lse=lse,
        loss=loss,
        B=batch,
        first=first,
        last=last,
        places=2 * groups,
        bound=bound or 0.0,
        BOUNDED=bound is not None,
        ROWS=ROWS,
        **ROW_OPTIONS,
    )
    return loss.sum() / (2 * (last - first)), Saved(lse, inverse)


def operands(entity: Tensor, mention: Tensor, duplicates: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As the kernels read them: entities by their place among the batch's, which takes half the registers."""
    if is_mask(duplicates):
        duplicates = duplicates.contiguous().view(torch.uint8)
    elif duplicates is not None:
        duplicates = torch.searchsorted(duplicates.sort().values, duplicates.contiguous(), out_int32=True)
    return entity.contiguous(), mention.contiguous(), duplicates


def is_mask(duplicates: Tensor | None) -> bool:
    return duplicates is not None and duplicates.dim() == 2


def norms(entity: Tensor, mention: Tensor) -> Tensor:
    """1 / norm [2B] fp32 of the rows of both."""
    batch, d = entity.shape
    inverse = torch.empty(2 * batch, dtype=torch.float32, device=entity.device)
    contrastive_norm_kernel[(triton.cdiv(batch, ROWS), 2)](
        entity=entity, mention=mention, inverse=inverse, B=batch, d=d, ROWS=ROWS, BK=norm_depth(d), **ROW_OPTIONS
    )
    return inverse


def norm_depth(d: int) -> int:
    return min(128, triton.next_power_of_2(d))
