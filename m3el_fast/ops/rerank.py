"""The best of each mention's own candidates by the union score (spec section 3.3)."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from m3el_fast.ops import cuda, gpu
from m3el_fast.ops.backends import Backend, choose
from m3el_fast.ops.checks import expect, shape
from m3el_fast.ops.g2l import Precision, g2l_pairs
from m3el_fast.ops.native import needs_gradient
from m3el_fast.ops.products import inner_pairs
from m3el_fast.ops.reference import G2LOperands
from m3el_fast.ops.selection import topk

_MOST_TOKENS, _MOST_WIDTH = 128, 256  # of a mention; of queries and keys: what the CUDA kernel's tiles hold
_NARROW_WIDTH = 160  # and where a block has 99 KB of shared memory


@overload
def rerank_topk(
    mention_coarse: Tensor,
    entity_coarse: Tensor,
    parts: list[G2LOperands],
    candidates: Tensor,
    k: int,
    *,
    components: Literal[False] = False,
    precision: Precision = "fp32",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]: ...


@overload
def rerank_topk(
    mention_coarse: Tensor,
    entity_coarse: Tensor,
    parts: list[G2LOperands],
    candidates: Tensor,
    k: int,
    *,
    components: Literal[True],
    precision: Precision = "fp32",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]: ...


def rerank_topk(
    mention_coarse: Tensor,
    entity_coarse: Tensor,
    parts: list[G2LOperands],
    candidates: Tensor,
    k: int,
    *,
    components: bool = False,
    precision: Precision = "fp32",
    backend: Backend = "auto",
) -> tuple[Tensor, ...]:
    """The k best of each mention's own candidates by the union score (spec section 3.3).

    Args:
        mention_coarse [M, D], entity_coarse [E, D]: every term of the score that is an inner product, concatenated.
        parts: the global-to-local part of each modality.
        candidates: [M, C] int64 entity rows; -1 = none; rows may repeat. Their features are gathered in the kernel.
        components: also return what the scores are made of.
        precision: of the global-to-local products, as in :func:`g2l_scores`.
        backend: see the table in :mod:`m3el_fast.ops`; the CUDA kernel has ``precision="bf16"`` only.

    Returns:
        Scores and entity rows [M, k], best first, ties to the earlier column; -inf and -1 where candidates run out.
        With ``components`` also [1 + parts, M, k]: the coarse product and each scaled part, whose sum is the score;
        -inf where candidates run out.

    Raises:
        ValueError: shapes do not match, a candidate is out of range (with the CUDA kernel an assertion of the device,
            which nobody waits for), k is not in 1..C, or ``backend`` cannot serve.
    """
    mentions, width = shape("mention_coarse", mention_coarse, 2)
    entities = shape("entity_coarse", entity_coarse, 2)[0]
    expect("entity_coarse", entity_coarse, (entities, width))
    columns = shape("candidates", candidates, 2)[1]
    expect("candidates", candidates, (mentions, columns))
    if not 1 <= k <= columns:
        raise ValueError(f"k: expected 1 to {columns} (the number of candidates), got {k}")
    for part in parts:
        _check_part(part, mentions, entities)
    obstacle = _cuda_obstacle(mention_coarse, entity_coarse, parts, candidates, precision)
    chosen = choose(backend, mention_coarse, None, None, obstacle)
    _check_candidates(candidates, entities, waits=chosen != "cuda")
    if chosen == "cuda":
        with gpu.launches(mention_coarse):
            found = _launch(mention_coarse, entity_coarse, parts, candidates, k)
    else:
        found = _by_pairs(mention_coarse, entity_coarse, parts, candidates, k, precision, backend)
    return found if components else found[:2]


def _by_pairs(
    mention_coarse: Tensor,
    entity_coarse: Tensor,
    parts: list[G2LOperands],
    candidates: Tensor,
    k: int,
    precision: Precision,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor]:
    """With the ops that score a list of pairs."""
    at = (candidates >= 0).nonzero(as_tuple=True)
    mention, entity = at[0], candidates[at]
    planes = [inner_pairs(mention_coarse, entity_coarse, mention, entity, backend=backend)]
    planes += [part.scale * _g2l(part, mention, entity, precision, backend) for part in parts]
    scores = planes[0]
    for plane in planes[1:]:
        scores = scores + plane
    # an absent candidate counts as NaN: behind every number and, moved to the last columns, behind real NaN
    order = (candidates < 0).to(torch.int8).sort(dim=1, stable=True).indices
    listed = scores.new_full(candidates.shape, math.nan).index_put(at, scores).gather(1, order)
    values, places = topk(listed, k, backend=backend)
    place = order.gather(1, places)
    ids = candidates.gather(1, place)
    blank = scores.new_full(candidates.shape, -math.inf)
    chosen = [blank.index_put(at, plane.to(scores.dtype)).gather(1, place) for plane in planes]
    return values.masked_fill(ids < 0, -math.inf), ids, torch.stack(chosen)


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


def _launch(
    mention_coarse: Tensor, entity_coarse: Tensor, parts: list[G2LOperands], candidates: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """With the CUDA kernels, for which the mentions' side is prepared here."""
    columns: list[list[Any]] = [[] for _ in range(8)]
    for part in parts:
        key = (part.key.float() * (math.log2(math.e) / math.sqrt(part.key.shape[-1]))).bfloat16()
        value = part.value.float()
        centred = value - value.mean(dim=-1, keepdim=True)
        row = candidates.new_empty(0) if part.row is None else part.row
        norm = (part.norm.weight.float(), part.norm.bias.float())
        operands = (part.query, part.gate, row, key, centred, centred @ centred.transpose(1, 2), *norm)
        for column, tensor in zip(columns, operands, strict=True):
            column.append(tensor.contiguous())
    scalars = [part.norm.eps for part in parts], [part.scale for part in parts]
    coarse = (mention_coarse.contiguous(), entity_coarse.contiguous())
    values, ids, planes = cuda.LIBRARY.rerank_topk(*coarse, candidates.contiguous(), k, *columns, *scalars)
    return values, ids, planes


def _cuda_obstacle(
    mention_coarse: Tensor, entity_coarse: Tensor, parts: list[G2LOperands], candidates: Tensor, precision: Precision
) -> str | None:
    if precision != "bf16":
        return "the kernel multiplies in bf16 (precision='bf16')"
    if candidates.shape[1] > cuda.MOST_SELECTED:
        return f"the kernel takes up to {cuda.MOST_SELECTED:,} candidates of a mention, got {candidates.shape[1]:,}"
    tensors = [mention_coarse, entity_coarse]
    for part in parts:
        tensors += [part.query, part.gate, part.key, part.value, part.norm.weight, part.norm.bias]
        _, tokens, width = part.key.shape
        widest = _NARROW_WIDTH if cuda.little_shared_memory(mention_coarse.device) else _MOST_WIDTH
        if tokens > _MOST_TOKENS or width > widest:
            most = f"up to {_MOST_TOKENS} mention tokens and {widest} features here"
            return f"the kernel takes {most}, got {tokens} and {width}"
        if part.query.numel() == 0 or part.key.numel() == 0:
            return "the kernel takes no empty tensors"
    obstacle = cuda.not_on_device(mention_coarse, candidates, *tensors, *(part.row for part in parts))
    if obstacle is None and mention_coarse.dtype != torch.float32:
        obstacle = f"the kernel takes coarse vectors of mentions in fp32, got {mention_coarse.dtype}"
    stored = [entity_coarse, *(tensor for part in parts for tensor in (part.query, part.gate))]
    wrong = next((t.dtype for t in stored if t.dtype not in (torch.float32, torch.bfloat16)), None)
    if obstacle is None and wrong is not None:
        obstacle = f"the kernel takes tensors of entities in fp32 and bf16, got {wrong}"
    return obstacle or needs_gradient(*tensors)


def _check_part(part: G2LOperands, mentions: int, entities: int) -> None:
    rows, _, width = shape("query", part.query, 3)
    _, tokens, _ = shape("key", part.key, 3)
    expect("key", part.key, (mentions, tokens, width))
    expect("value", part.value, (mentions, tokens, width))
    expect("gate", part.gate, (rows, width))
    expect("norm.weight", part.norm.weight, (width,))
    expect("norm.bias", part.norm.bias, (width,))
    if part.row is None:
        expect("query", part.query, (entities, *part.query.shape[1:]))
    else:
        expect("row", part.row, (entities,))
        if part.row.dtype != torch.int64:
            raise ValueError(f"row: expected int64, got {part.row.dtype}")


def _check_candidates(candidates: Tensor, entities: int, waits: bool) -> None:
    if candidates.dtype != torch.int64:
        raise ValueError(f"candidates: expected int64, got {candidates.dtype}")
    if not waits:
        inside = ((candidates >= -1) & (candidates < entities)).all()
        torch._assert_async(inside, f"candidates: expected rows in -1..{entities - 1}")
    elif candidates.numel():
        low, high = torch.stack(candidates.aminmax()).tolist()
        if not -1 <= low <= high < entities:
            raise ValueError(f"candidates: expected rows in -1..{entities - 1}, got {low}..{high}")
