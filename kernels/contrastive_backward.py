"""Contrastive losses of B pairs, backward: the gradient of both sides from recomputed tiles.

With P_ij = exp(l_ij - lse_i) the gradient of the sum of losses by l_ij = l_ji is c_ij = P_ij + P_ji, less 2 at the
positive, and that of row i is sum_j c_ij scale_ij x_j. Both are matrix products of the size of the forward pass. They
go over the rows in strips of ``_STRIP``: the coefficients of a strip's rows and all columns, then their product with
all rows in parts of the columns, then the sum of the parts in a fixed order and the normalisation's gradient. So no
accumulator grows with d, no tile is computed twice, and memory holds _STRIP x 2B coefficients.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contrastive import (
    EPS,
    Saved,
    is_mask,
    operands,
    scaled_products,
    weighted,
    without_equal,
    without_marked,
)
from .contrastive_tiles import ROW_OPTIONS, Terms, precision_of, tile_of

_STRIP = 512
_PROGRAMS = 256  # of a strip's sums: about two for every multiprocessor


@triton.jit
def span(tile, B, first, last, BT: tl.constexpr):
    """The tiles of columns on one side that share a gradient with a tile of rows: all, or those with anchors."""
    anchors = (tile * BT < last) & (tile * BT + BT > first)
    return tl.where(anchors, 0, first // BT), tl.where(anchors, tl.cdiv(B, BT), tl.cdiv(last, BT))


@triton.jit
def contrastive_coefficient_kernel(
    entity,  # [B, d]
    mention,  # [B, d]
    inverse,  # [2B] fp32, or None
    lse,  # [2B] fp32, base 2; inf of rows that are no anchors
    duplicates,  # [B] int32 or [B, B] uint8, or None
    coefficient,  # [strip, 2 tiles BT]
    B,
    d,
    first,
    last,
    begin,  # the strip's first tile, of both sides'
    other_scale,
    other_shift,
    same_scale,
    same_shift,
    bound,
    SAME: tl.constexpr,
    BOUNDED: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """c_ij scale_ij / |x_j| of a tile. Programs: tiles of columns x tiles of the strip."""
    tiles = tl.cdiv(B, BT)
    r, c = begin + tl.program_id(1), tl.program_id(0)
    x_side, y_side = r // tiles, c // tiles
    if not SAME:
        y_side = 1 - x_side
    r, c = r % tiles, c % tiles
    low, high = span(r, B, first, last, BT)
    if (c >= low) & (c < high):
        x, y = entity, entity
        if x_side == 1:
            x = mention
        if y_side == 1:
            y = mention
        x_inverse, y_inverse = None, None
        if inverse is not None:
            x_inverse, y_inverse = inverse + x_side * B, inverse + y_side * B
        same = x_side == y_side
        scale = tl.where(same, same_scale, other_scale)
        shift = tl.where(same, same_shift, other_shift)
        lane = tl.arange(0, BT)
        i, j = r * BT + lane, c * BT + lane
        i_safe, j_safe = tl.minimum(i, B - 1), tl.minimum(j, B - 1)
        product = scaled_products(x, i_safe, y, j_safe, x_inverse, y_inverse, d, scale, BK, PRECISION)
        row_lse = tl.load(lse + x_side * B + i_safe)
        column_lse = tl.load(lse + y_side * B + j_safe)
        logit = weighted(product, r == c, same, shift, float("-inf"))
        logit = without_equal(logit, duplicates, i_safe, j_safe)
        if BOUNDED:
            weight = tl.exp2(logit - bound)
            of_rows = weight * tl.exp2(bound - row_lse)[:, None]
            of_columns = weight * tl.exp2(bound - column_lse)[None, :]
        else:
            # at most 1, also where fp32 rounds a large logit otherwise than the forward pass did
            of_rows = tl.exp2(tl.minimum(logit - row_lse[:, None], 0.0))
            of_columns = tl.exp2(tl.minimum(logit - column_lse[None, :], 0.0))
        of_rows = without_marked(of_rows, 0.0, duplicates, i_safe[:, None], j_safe[None, :], B)
        of_columns = without_marked(of_columns, 0.0, duplicates, j_safe[None, :], i_safe[:, None], B)
        found = of_rows + of_columns
        if (r == c) & (x_side != y_side):
            anchor = (i >= first) & (i < last)
            found = tl.where((lane[:, None] == lane[None, :]) & anchor[:, None], found - 2.0, found)
        column_scale = tl.zeros([BT], tl.float32) + scale
        if inverse is not None:
            column_scale = tl.load(y_inverse + j_safe) * scale
        found = tl.where((j < B)[None, :], found * column_scale[None, :], 0.0)
        row = (tl.program_id(1) * BT + lane).to(tl.int64) * (2 * tiles * BT)
        at = row[:, None] + (y_side * tiles + c) * BT + lane[None, :]
        tl.store(coefficient + at, found.to(coefficient.dtype.element_ty))


@triton.jit
def contrastive_sum_kernel(
    entity,  # [B, d]
    mention,  # [B, d]
    coefficient,  # [strip, 2 tiles BT]
    partial,  # [parts, strip, d] fp32
    B,
    d,
    first,
    last,
    begin,
    SAME: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of coefficient times column, over a part of the columns. Programs: tiles of d x of the strip x parts."""
    tiles = tl.cdiv(B, BT)
    tile = begin + tl.program_id(1)
    low, high = span(tile % tiles, B, first, last, BT)
    low, high = low * (BT // BK), high * (BT // BK)
    steps = (high - low) * (2 if SAME else 1)
    share = tl.cdiv(steps, tl.num_programs(2))
    part_low = tl.program_id(2) * share
    part_high = tl.minimum(part_low + share, steps)
    row = (tl.program_id(1) * BT + tl.arange(0, BT)).to(tl.int64)
    dim = tl.program_id(0) * BD + tl.arange(0, BD)
    total = tl.zeros([BT, BD], tl.float32)
    for turn in range(0, 2 if SAME else 1):
        side = turn if SAME else 1 - tile // tiles
        y = entity
        if side == 1:
            y = mention
        # the steps of this side are turn * (high - low) and following
        skipped = turn * (high - low) - low
        for step in range(tl.maximum(part_low - skipped, low), tl.minimum(part_high - skipped, high)):
            j = step * BK + tl.arange(0, BK)
            c = tl.load(coefficient + row[:, None] * (2 * tiles * BT) + (side * tiles * BT + j)[None, :])
            at = tl.minimum(j, B - 1).to(tl.int64)[:, None] * d + dim[None, :]
            value = tl.load(y + at, mask=(dim < d)[None, :], other=0.0).to(c.dtype)
            total = tl.dot(c, value, total, input_precision=PRECISION)
    strip = tl.num_programs(1).to(tl.int64) * BT
    at = ((tl.program_id(2) * strip + row) * d)[:, None] + dim[None, :]
    tl.store(partial + at, total, mask=(dim < d)[None, :])


@triton.jit
def contrastive_finish_kernel(
    gradient,  # [] fp32, of the mean of the losses
    entity,  # [B, d]
    mention,  # [B, d]
    inverse,  # [2B] fp32, or None
    partial,  # [parts, strip, d] fp32
    d_entity,  # [B, d]
    d_mention,  # [B, d]
    B,
    d,
    begin,
    parts,
    factor,
    BT: tl.constexpr,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
):
    """The gradient of some rows. Programs: parts of a tile x tiles of the strip."""
    tiles = tl.cdiv(B, BT)
    tile = begin + tl.program_id(1)
    side = tile // tiles
    lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = (tile % tiles) * BT + lane
    dim = tl.arange(0, BD)
    mask = (i < B)[:, None] & (dim < d)[None, :]
    x, out = entity, d_entity
    if side == 1:
        x, out = mention, d_mention
    source = partial + ((tl.program_id(1) * BT + lane).to(tl.int64) * d)[:, None] + dim[None, :]
    strip = tl.num_programs(1).to(tl.int64) * BT
    found = tl.zeros([ROWS, BD], tl.float32)
    for _ in range(parts):
        found += tl.load(source, mask=mask, other=0.0)
        source += strip * d
    at = i.to(tl.int64)[:, None] * d + dim[None, :]
    scale = tl.load(gradient) * factor
    if inverse is not None:
        row_inverse = tl.load(inverse + side * B + i, mask=i < B, other=0.0)
        z = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * row_inverse[:, None]
        # where eps stands for the norm, it is a constant
        along = tl.where(row_inverse < 1 / EPS, tl.sum(z * found, axis=1), 0.0)
        found = (found - along[:, None] * z) * row_inverse[:, None]
    tl.store(out + at, (found * scale).to(out.dtype.element_ty), mask=mask)


def backward(
    gradient: Tensor,  # [] of the mean loss
    entity: Tensor,  # [B, d]
    mention: Tensor,  # [B, d]
    duplicates: Tensor | None,  # [B] int64 or [B, B] bool
    first: int,
    last: int,
    terms: Terms,
    saved: Saved,
) -> tuple[Tensor, Tensor]:
    """Gradients of entity and mention, in their dtype."""
    entity, mention, duplicates = operands(entity, mention, duplicates)
    batch, d = entity.shape
    dtype, device = entity.dtype, entity.device
    tile = tile_of(batch, d, dtype, is_mask(duplicates))
    tiles = triton.cdiv(batch, tile.size)
    strip = min(_STRIP // tile.size, 2 * tiles)
    width, depth = sum_tile(tile.size, d, dtype)
    columns = triton.cdiv(d, width)
    parts = min(triton.cdiv(_PROGRAMS, strip * columns), tiles)
    bound, same = terms.bound(), terms.same_scale is not None
    coefficient = torch.empty(strip * tile.size, 2 * tiles * tile.size, dtype=coefficient_dtype(dtype), device=device)
    partial = torch.empty(parts, strip * tile.size, d, dtype=torch.float32, device=device)
    found = torch.empty_like(entity), torch.empty_like(mention)
    sides = {"entity": entity, "mention": mention, "B": batch, "d": d}
    anchors = {"first": first, "last": last, "SAME": same, "PRECISION": precision_of(dtype)}
    for begin in range(0, 2 * tiles, strip):
        height = min(strip, 2 * tiles - begin)
        contrastive_coefficient_kernel[(2 * tiles if same else tiles, height)](
            **sides,
            **anchors,
            inverse=saved.inverse,
            lse=saved.lse,
            duplicates=duplicates,
            coefficient=coefficient,
            begin=begin,
            **terms.scalars(),
            bound=bound or 0.0,
            BOUNDED=bound is not None,
            BT=tile.size,
            BK=tile.depth,
            **tile.options,
        )
        contrastive_sum_kernel[(columns, height, parts)](
            **sides,
            **anchors,
            coefficient=coefficient,
            partial=partial,
            begin=begin,
            BT=tile.size,
            BD=width,
            BK=depth,
            **tile.options,
        )
        lines, across = finish_tile(d)
        contrastive_finish_kernel[(tile.size // lines, height)](
            **sides,
            gradient=gradient,
            inverse=saved.inverse,
            partial=partial,
            d_entity=found[0],
            d_mention=found[1],
            begin=begin,
            parts=parts,
            factor=math.log(2) / (2 * (last - first)),  # scales are those of base 2
            BT=tile.size,
            ROWS=lines,
            BD=across,
            **ROW_OPTIONS,
        )
    return found


def coefficient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Small probabilities vanish in fp16."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def sum_tile(size: int, d: int, dtype: torch.dtype) -> tuple[int, int]:
    """Columns of a program's sums, and depth of a step, where tiles are of ``size``."""
    return min(size, max(16, triton.next_power_of_2(d))), 64 if dtype == torch.bfloat16 else 32


def finish_tile(d: int) -> tuple[int, int]:
    """Rows and columns, all d of them."""
    across = triton.next_power_of_2(d)
    return max(1, min(16, 4096 // across)), across
