"""Selection of the best entities: top-k of scores, and top-k of each mention's own candidates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from m3el_fast.ops import gpu, reference
from m3el_fast.ops.backends import Backend, choose
from m3el_fast.ops.checks import expect, shape
from m3el_fast.ops.g2l import Precision, g2l_pairs
from m3el_fast.ops.native import needs_gradient, not_cpu_fp32
from m3el_fast.ops.products import inner_pairs
from m3el_fast.ops.reference import G2LOperands


def topk(scores: Tensor, k: int, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """The k largest of each row of scores [M, N]: values and int64 indices [M, k], sorted, ties to the lower index.

    NaN sorts behind every number.

    Raises:
        ValueError: scores is not a matrix, or k is not in 1..N.
    """
    columns = shape("scores", scores, 2)[1]
    if not 1 <= k <= columns:
        raise ValueError(f"k: expected 1 to {columns} (the number of columns), got {k}")
    if choose(backend, scores, _obstacle(scores), gpu.NO_KERNEL) == "native":
        values, ids = torch.ops.m3el_fast.topk(scores.contiguous(), k)
        return values, ids
    return reference.topk(scores, k)


def topk_merge(
    values: Tensor, ids: Tensor, scores: Tensor, first: int, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """A running top-k after one more block of scores: a scan in blocks keeps no [M, E] matrix.

    Args:
        values, ids: [M, k], the selection so far as :func:`topk` gives it, ids (int64) below ``first``.
        scores: [M, N] of the entities ``first`` to ``first + N - 1``.

    Returns:
        The new values and ids [M, k], sorted, ties to the lower id, NaN last.

    Raises:
        ValueError: shapes do not match.
    """
    rows, k = shape("values", values, 2)
    expect("ids", ids, (rows, k))
    columns = shape("scores", scores, 2)[1]
    expect("scores", scores, (rows, columns))
    if choose(backend, scores, _obstacle(scores, values), gpu.NO_KERNEL) == "native":
        values, ids = torch.ops.m3el_fast.topk_merge(values.contiguous(), ids.contiguous(), scores.contiguous(), first)
        return values, ids
    both = torch.cat([ids, torch.arange(first, first + columns, device=ids.device).expand(rows, -1)], dim=1)
    values, places = reference.topk(torch.cat([values, scores], dim=1), k)
    return values, both.gather(1, places)


def _g2l(part: G2LOperands, mention: Tensor, entity: Tensor, precision: Precision, backend: Backend) -> Tensor:
    """One modality's scores [P] of pairs; where entities share rows, each pair of a mention and a row once."""
    back = None
    if part.row is not None:
        count = part.query.shape[0]
        pairs, back = (mention * count + part.row[entity]).unique(return_inverse=True)
        mention, entity = pairs // count, pairs % count
    operands = (part.query, part.key, part.value, part.gate, part.norm, mention, entity)
    scores = g2l_pairs(*operands, precision=precision, backend=backend)
    return scores if back is None else scores[back]


def _obstacle(*tensors: Tensor) -> str | None:
    return not_cpu_fp32(*tensors) or needs_gradient(*tensors)


def rerank_topk(
    mention_coarse: Tensor,
    entity_coarse: Tensor,
    parts: list[G2LOperands],
    candidates: Tensor,
    k: int,
    *,
    precision: Precision = "fp32",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """The k best of each mention's own candidates by the union score (spec section 3.3).

    Args:
        mention_coarse [M, D], entity_coarse [E, D]: every term of the score that is an inner product, concatenated.
        parts: the global-to-local part of each modality.
        candidates: [M, C] int64 entity rows; -1 = none; rows may repeat. Their features are gathered in the kernel.
        precision: of the global-to-local products, as in :func:`g2l_scores`.

    Returns:
        Scores and entity rows [M, k], best first, ties to the earlier column; -inf and -1 where candidates run out.

    Raises:
        ValueError: shapes do not match, a candidate is out of range, or k is not in 1..C.
    """
    mentions, width = shape("mention_coarse", mention_coarse, 2)
    entities = shape("entity_coarse", entity_coarse, 2)[0]
    expect("entity_coarse", entity_coarse, (entities, width))
    columns = shape("candidates", candidates, 2)[1]
    expect("candidates", candidates, (mentions, columns))
    if candidates.numel() and not -1 <= int(candidates.min()) <= int(candidates.max()) < entities:
        raise ValueError(
            f"candidates: expected rows in -1..{entities - 1}, got {int(candidates.min())}..{int(candidates.max())}"
        )
    if not 1 <= k <= columns:
        raise ValueError(f"k: expected 1 to {columns} (the number of candidates), got {k}")
    mention, column = (candidates >= 0).nonzero(as_tuple=True)
    entity = candidates[mention, column]
    found = inner_pairs(mention_coarse, entity_coarse, mention, entity, backend=backend)
    for part in parts:
        found = found + part.scale * _g2l(part, mention, entity, precision, backend)
    # an absent candidate counts as NaN: behind every number and, moved to the last columns, behind real NaN
    scores = found.new_full(candidates.shape, math.nan).index_put((mention, column), found)
    order = (candidates < 0).to(torch.int8).sort(dim=1, stable=True).indices
    values, places = topk(scores.gather(1, order), k, backend=backend)
    ids = candidates.gather(1, order).gather(1, places)
    return values.masked_fill(ids < 0, -math.inf), ids
