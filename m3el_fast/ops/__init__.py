"""The one public face of every kernel: checks the arguments, chooses the backend, runs the op.

| op | reference | other backends |
|---|---|---|
| icl_loss, infonce_loss, mclet_loss | both variants, duplicates mask | - |
| g2l_scores | mean, max and soft pooling, masks | - |
| cross_modal_context | bidirectional and T2V-only form | - |
| dual_scores | yes | - |
| topk, rerank_topk | yes | - |
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from m3el_fast.ops import reference
from m3el_fast.ops.reference import (
    CrossModalWeights,
    DualWeights,
    G2LOperands,
    LayerNormWeights,
    diagonal_cross_entropy,
)

__all__ = [
    "CrossModalWeights",
    "DualWeights",
    "G2LOperands",
    "LayerNormWeights",
    "cross_modal_context",
    "diagonal_cross_entropy",
    "dual_scores",
    "g2l_scores",
    "icl_loss",
    "infonce_loss",
    "mclet_loss",
    "rerank_topk",
    "topk",
]

# Largest number of attention weights that one block of the reference holds when nothing has to be kept for a backward
# pass: 2^20 fp32 values are 4 MB, about what stays in a core's caches.
_BLOCK_WEIGHTS = 1 << 20


def icl_loss(
    entity: Tensor,
    mention: Tensor,
    *,
    tau: float = 0.03,
    beta: float = 0.8,
    gamma: float = 1.0,
    variant: Literal["paper", "released"] = "paper",
    duplicates: Tensor | None = None,
) -> Tensor:
    """Intra-modal contrastive loss of one modality (spec section 2, M3EL Eq. 2-3).

    Args:
        entity, mention: [B, d] features, any float dtype; row i of one belongs to row i of the other.
        tau: temperature; beta: weight of the anchor's own side; gamma: weight of the other side.
        variant: ``paper`` weighs terms of the denominator, ``released`` weighs logits.
        duplicates: [B, B] bool; pairs (i, j), i != j, left out of every denominator.

    Returns:
        Scalar: the mean over entity anchors and over mention anchors, halved.

    Raises:
        ValueError: shapes do not match, the batch is empty, or the variant is unknown.
    """
    _check_pair(entity, mention, duplicates)
    if variant not in ("paper", "released"):
        raise ValueError(f"variant: expected 'paper' or 'released', got {variant!r}")
    return reference.icl_loss(entity, mention, tau, beta, gamma, variant, duplicates)


def infonce_loss(entity: Tensor, mention: Tensor, duplicates: Tensor | None = None) -> Tensor:
    """InfoNCE of one modality on raw dot products of [B, d] features: scalar (spec section 2). Raises as icl_loss."""
    _check_pair(entity, mention, duplicates)
    return reference.infonce_loss(entity, mention, duplicates)


def mclet_loss(a: Tensor, b: Tensor, *, tau: float = 0.6, duplicates: Tensor | None = None) -> Tensor:
    """MCLET loss of projected, L2-normalised [B, d] features: scalar (spec section 2). Raises as icl_loss."""
    _check_pair(a, b, duplicates)
    return reference.mclet_loss(a, b, tau, duplicates)


def g2l_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm: LayerNormWeights,
    *,
    pooling: Literal["mean", "max", "soft"] = "mean",
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Global-to-local scores of all pairs (spec sections 3.1 and 5.2, M3EL Eq. 5).

    Args:
        query: [E, Le, d], Wq of the entities' local features; gate: [E, d], Wg of their global ones.
        key, value: [M, Lm, d], Wk and Wv of the mentions' local features.
        norm: LayerNorm of the pooled context.
        pooling: of the entity's rows; mean runs without the product A V.
        query_mask [E, Le], key_mask [M, Lm]: bool, True = takes part; every row needs one True.

    Returns:
        [M, E] scores in the dtype of the arguments.

    Raises:
        ValueError: shapes do not match, or the pooling is unknown.
    """
    entities, rows, d = _shape("query", query, 3)
    mentions, columns, _ = _shape("key", key, 3)
    _expect("key", key, (mentions, columns, d))
    _expect("value", value, (mentions, columns, d))
    _expect("gate", gate, (entities, d))
    if query_mask is not None:
        _expect("query_mask", query_mask, (entities, rows))
    if key_mask is not None:
        _expect("key_mask", key_mask, (mentions, columns))
    if pooling not in ("mean", "max", "soft"):
        raise ValueError(f"pooling: expected 'mean', 'max' or 'soft', got {pooling!r}")

    def block(e: slice, m: slice) -> Tensor:
        q_mask = None if query_mask is None else query_mask[e]
        k_mask = None if key_mask is None else key_mask[m]
        if pooling == "mean":
            return reference.g2l_scores(query[e], key[m], value[m], gate[e], norm, q_mask, k_mask)
        return reference.g2l_scores_paper(query[e], key[m], value[m], gate[e], norm, pooling, q_mask, k_mask)

    if torch.is_grad_enabled() or entities == 0 or mentions == 0:
        return block(slice(None), slice(None))
    m_size = max(1, min(mentions, 64))
    per_pair = rows * columns if pooling == "mean" else rows * max(columns, d)
    e_size = max(1, _BLOCK_WEIGHTS // (m_size * per_pair))
    strips = [
        torch.cat([block(slice(e, e + e_size), slice(m, m + m_size)) for e in range(0, entities, e_size)], dim=1)
        for m in range(0, mentions, m_size)
    ]
    return torch.cat(strips)


def cross_modal_context(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> Tensor:
    """Cross-modal context ``out`` [n, d] of one side and one direction (spec sections 3.2 and 5.4, M3EL Eq. 6-7).

    Args:
        glob: [n, d] projected global features; local: [n, L, d] projected local features of the other modality.
        weights: of the unit; with fusion weights, the released code's T2V-only form.

    Raises:
        ValueError: shapes do not match, or the number of heads has no temperatures.
    """
    n, d = _shape("glob", glob, 2)
    _expect("local", local, (n, _shape("local", local, 3)[1], d))
    if weights.head_weight.shape[0] not in reference.HEAD_TEMPERATURES:
        raise ValueError(f"head_weight: expected 1 to 8 heads, got {weights.head_weight.shape[0]}")
    return reference.cross_modal_context(glob, local, weights)


def dual_scores(source: Tensor, key: Tensor, value: Tensor, weights: DualWeights) -> Tensor:
    """MIMIC's dual-gated scores [S, T] of source vectors [S, d] and targets' key, value [T, d] (spec 4 and 5.5).

    Raises:
        ValueError: shapes do not match.
    """
    d = _shape("source", source, 2)[1]
    targets = _shape("key", key, 2)[0]
    _expect("key", key, (targets, d))
    _expect("value", value, (targets, d))
    return reference.dual_scores(source, key, value, weights)


def topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of scores [M, N]: values and int64 indices [M, k], sorted, ties to the lower index.

    NaN sorts behind every number.

    Raises:
        ValueError: scores is not a matrix, or k is not in 1..N.
    """
    columns = _shape("scores", scores, 2)[1]
    if not 1 <= k <= columns:
        raise ValueError(f"k: expected 1 to {columns} (the number of columns), got {k}")
    return reference.topk(scores, k)


def rerank_topk(
    mention_coarse: Tensor, entity_coarse: Tensor, parts: list[G2LOperands], candidates: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best of each mention's own candidates by the union score (spec section 3.3).

    Args:
        mention_coarse [M, D], entity_coarse [E, D]: every term of the score that is an inner product, concatenated.
        parts: the global-to-local part of each modality.
        candidates: [M, C] int64 entity rows; -1 = none; rows may repeat.

    Returns:
        Scores and entity rows [M, k], best first, ties to the earlier column; -inf and -1 where candidates run out.

    Raises:
        ValueError: shapes do not match, a candidate is out of range, or k is not in 1..C.
    """
    mentions, width = _shape("mention_coarse", mention_coarse, 2)
    entities = _shape("entity_coarse", entity_coarse, 2)[0]
    _expect("entity_coarse", entity_coarse, (entities, width))
    columns = _shape("candidates", candidates, 2)[1]
    _expect("candidates", candidates, (mentions, columns))
    if candidates.numel() and not -1 <= int(candidates.min()) <= int(candidates.max()) < entities:
        raise ValueError(
            f"candidates: expected rows in -1..{entities - 1}, got {int(candidates.min())}..{int(candidates.max())}"
        )
    if not 1 <= k <= columns:
        raise ValueError(f"k: expected 1 to {columns} (the number of candidates), got {k}")
    return reference.rerank_topk(mention_coarse, entity_coarse, parts, candidates, k)


def _check_pair(a: Tensor, b: Tensor, duplicates: Tensor | None) -> None:
    rows, width = _shape("entity", a, 2)
    _expect("mention", b, (rows, width))
    if rows == 0:
        raise ValueError("entity: expected at least one row, got 0")
    if duplicates is not None:
        _expect("duplicates", duplicates, (rows, rows))


def _shape(name: str, tensor: Tensor, dims: int) -> torch.Size:
    if tensor.dim() != dims:
        raise ValueError(f"{name}: expected {dims} dimensions, got shape {tuple(tensor.shape)}")
    return tensor.shape


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
