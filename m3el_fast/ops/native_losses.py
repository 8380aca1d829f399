"""The native contrastive losses: products of the features by torch, block by block, and all else of a block in one op.

All rows of both sides stand in one order: the anchors' entities, their mentions, the other entities, the other
mentions. A block of 128 anchors is multiplied with itself and with all rows behind it, each pair once: that is half of
the products that the formulas name, forward and backward, and no row of logits is read twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from m3el_fast.ops.gradients import register_gradient

_ROWS = 128  # of a block: kContrastiveRows of csrc/cpu/contrastive.h
_MOST_KEPT = 1 << 24  # products kept for the backward pass, 64 MB; of larger batches they are computed again
_EPS = 1e-12  # of F.normalize

_Terms = tuple[float, float, float, float, bool]


@torch.library.custom_op("m3el_fast::native_contrastive", mutates_args=())
def contrastive(
    entity: Tensor,
    mention: Tensor,
    duplicates: Tensor | None,
    first: int,
    last: int,
    other_scale: float,
    other_weight: float,
    same_scale: float,
    same_weight: float,
    self_term: bool,
    normalise: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean loss of the anchors first to last - 1 of both sides, and what the backward pass needs: lengths of the rows
    (none without ``normalise``), logarithms of sums, and products (none without ``keep``).

    The other arguments are ``Terms`` of ``kernels/contrastive_tiles.py``.
    """
    batch, anchors = entity.shape[0], last - first
    terms = (other_scale, other_weight, same_scale, same_weight, self_term)
    masks = _masks(duplicates, first, last)
    with torch.autocast("cpu", enabled=False):
        x = _in_order(entity, mention, first, last)
        lengths = x.new_empty(0)
        if normalise:
            lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(_EPS)
            x.div_(lengths)
        peak, total = x.new_full((2 * batch,), -math.inf), x.new_zeros(2 * batch)
        positive = x.new_empty(anchors)
        kept = x.new_empty(_kept(anchors, batch, keep))
        scratch = x.new_empty(0 if kept.numel() else min(_ROWS, 2 * anchors) * 2 * batch)
        for start, stop, place in _blocks(anchors, batch):
            size = (stop - start) * (2 * batch - start)
            products = kept[place : place + size] if kept.numel() else scratch[:size]
            products = torch.mm(x[start:stop], x[start:].T, out=products.view(stop - start, -1))
            torch.ops.m3el_fast.contrastive_sums(products, start, anchors, batch, *terms, *masks, peak, total)
            if start < anchors:
                positive[start:stop] = products.diagonal(anchors)[: anchors - start]
        spread = total.log2_()
        # of a largest logit that is the positive's nothing is left: small losses keep their digits
        losses = (peak[: 2 * anchors].view(2, anchors) - positive.mul_(other_scale * math.log2(math.e))).flatten()
        losses = losses.add_(spread[: 2 * anchors]).clamp_min_(0)
        lse = peak.add_(spread)
        lse[2 * anchors :] = math.inf
    return losses.mean() * math.log(2), lengths, lse, kept


@contrastive.register_fake
def _(
    entity: Tensor, mention: Tensor, duplicates: Tensor | None, first: int, last: int, *terms: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, normalise, keep = terms
    batch, new = entity.shape[0], entity.new_empty
    lengths = new(2 * batch, 1) if normalise else new(0)
    return new(()), lengths, new(2 * batch), new(_kept(last - first, batch, keep))


@torch.library.custom_op("m3el_fast::native_contrastive_backward", mutates_args=())
def contrastive_backward(
    gradient: Tensor,
    lengths: Tensor,
    lse: Tensor,
    kept: Tensor,
    entity: Tensor,
    mention: Tensor,
    duplicates: Tensor | None,
    first: int,
    last: int,
    other_scale: float,
    other_weight: float,
    same_scale: float,
    same_weight: float,
    self_term: bool,
    normalise: bool,
    keep: bool,
) -> Tensor:
    """Gradients [2, B, d] of entities and mentions, of what :func:`contrastive` gave and was given."""
    batch, anchors = entity.shape[0], last - first
    terms = (other_scale, other_weight, same_scale, same_weight, self_term)
    masks = _masks(duplicates, first, last)
    with torch.autocast("cpu", enabled=False):
        x = _in_order(entity, mention, first, last)
        if normalise:
            x.div_(lengths)
        of_x = torch.zeros_like(x)
        longest = min(_ROWS, 2 * anchors) * 2 * batch
        scratch, again = x.new_empty(longest), x.new_empty(0 if kept.numel() else longest)
        for start, stop, place in _blocks(anchors, batch):
            rows, size = stop - start, (stop - start) * (2 * batch - start)
            if kept.numel():
                products = kept[place : place + size].view(rows, -1)
            else:
                products = torch.mm(x[start:stop], x[start:].T, out=again[:size].view(rows, -1))
            coefficients = scratch[:size].view(rows, -1)
            torch.ops.m3el_fast.contrastive_coefficients(
                products, start, anchors, batch, *terms, *masks, lse, coefficients
            )
            of_x[start:stop].addmm_(coefficients, x[start:])
            of_x[stop:].addmm_(coefficients[:, rows:].T, x[start:stop])
        factor = gradient / (2 * anchors)
        if normalise:
            # a row shorter than eps was divided by eps, which is constant
            along = torch.where(lengths > _EPS, torch.linalg.vecdot(of_x, x)[:, None], 0.0)
            of_x.addcmul_(along, x, value=-1)
            factor = factor / lengths
        return _in_place(of_x.mul_(factor), first, last)


@contrastive_backward.register_fake
def _(gradient: Tensor, lengths: Tensor, lse: Tensor, kept: Tensor, entity: Tensor, *others: Any) -> Tensor:
    return entity.new_empty(2, *entity.shape)


def _blocks(anchors: int, batch: int) -> Iterator[tuple[int, int, int]]:
    """First and last row, exclusive, of each block, and where its products start among all that are kept."""
    place = 0
    for start in range(0, 2 * anchors, _ROWS):
        stop = min(start + _ROWS, 2 * anchors)
        yield start, stop, place
        place += (stop - start) * (2 * batch - start)


def _kept(anchors: int, batch: int, keep: bool) -> int:
    """How many products are kept."""
    count = sum((stop - start) * (2 * batch - start) for start, stop, _ in _blocks(anchors, batch)) if keep else 0
    return count if count <= _MOST_KEPT else 0


def _in_order(entity: Tensor, mention: Tensor, first: int, last: int) -> Tensor:
    """[2 B, ...] of both sides: anchors first."""
    others = [part for side in (entity, mention) for part in (side[:first], side[last:])]
    return torch.cat([entity[first:last], mention[first:last], *others])


def _in_place(ordered: Tensor, first: int, last: int) -> Tensor:
    """The inverse of :func:`_in_order`."""
    anchors, others = (part.unflatten(0, (2, -1)) for part in ordered.tensor_split([2 * (last - first)]))
    return torch.cat([others[:, :first], anchors, others[:, first:]], dim=1)


def _masks(duplicates: Tensor | None, first: int, last: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Entities of the rows, pairs to leave out, and the same transposed, in the rows' order."""
    if duplicates is None:
        return None, None, None
    if duplicates.dtype == torch.int64:
        return _in_order(duplicates, duplicates, first, last), None, None
    items = torch.arange(len(duplicates))
    items = torch.cat([items[first:last], items[:first], items[last:]])
    pairs = duplicates[items][:, items]
    return None, pairs, pairs.T.contiguous()


register_gradient("native_contrastive", "native_contrastive_backward", "contrastive losses")
