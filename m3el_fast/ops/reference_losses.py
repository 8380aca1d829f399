"""The contrastive losses in plain PyTorch (spec section 2): the oracle of all loss kernels.

All functions are differentiable and keep the dtype of their arguments.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def icl_loss(
    entity: Tensor,  # [B, d]
    mention: Tensor,  # [B, d]
    tau: float,
    beta: float,
    gamma: float,
    variant: str,
    duplicates: Tensor | None = None,  # [B, B] bool or [B] int64
    anchors: range | None = None,
) -> Tensor:
    """ICL of one modality: mean over entity anchors and mention anchors, halved (spec section 2, M3EL Eq. 2-3)."""
    e, m = F.normalize(entity, dim=-1), F.normalize(mention, dim=-1)
    rows = anchors or range(len(e))
    removed = _removed(duplicates, rows)
    of_entities = _icl_anchors(e, m, rows, tau, beta, gamma, variant, removed)
    of_mentions = _icl_anchors(m, e, rows, tau, beta, gamma, variant, removed)
    return (of_entities + of_mentions) / 2


def _icl_anchors(
    own: Tensor, other: Tensor, rows: range, tau: float, beta: float, gamma: float, variant: str, removed: Tensor | None
) -> Tensor:
    """Mean loss of the anchors ``own[rows]``, whose positives are the same rows of ``other``."""
    anchor = own[rows.start : rows.stop]
    to_other, to_own = anchor @ other.T / tau, anchor @ own.T / tau  # [A, B]
    itself = _itself(rows, len(own), own.device)
    if variant == "paper":
        # weight * exp(x) = exp(x + log weight); a weight of 0 removes the term
        positive = to_other.diagonal(rows.start)
        to_other = torch.where(itself, to_other, to_other + _log(gamma))
        to_own = (to_own + _log(beta)).masked_fill(itself, -math.inf)
    else:
        to_other, to_own = gamma * to_other, (beta * to_own).masked_fill(itself, 0.0)
        positive = to_other.diagonal(rows.start)
    logits = torch.cat([to_other, to_own], dim=1)
    if removed is not None:
        logits = logits.masked_fill(removed.repeat(1, 2), -math.inf)
    return (logits.logsumexp(dim=1) - positive).mean()


def _itself(rows: range, batch: int, device: torch.device) -> Tensor:
    """[A, B] bool: the column that is the anchor."""
    return torch.arange(rows.start, rows.stop, device=device)[:, None] == torch.arange(batch, device=device)


def _removed(duplicates: Tensor | None, rows: range) -> Tensor | None:
    """[A, B] bool: the columns to leave out."""
    if duplicates is None:
        return None
    own = duplicates[rows.start : rows.stop]
    pairs = own if duplicates.dtype == torch.bool else own[:, None] == duplicates
    return pairs & ~_itself(rows, len(duplicates), duplicates.device)


def _log(weight: float) -> float:
    return math.log(weight) if weight > 0 else -math.inf


def infonce_loss(
    entity: Tensor, mention: Tensor, duplicates: Tensor | None = None, anchors: range | None = None
) -> Tensor:
    """InfoNCE of one modality on raw dot products: mean of row and column cross entropies (spec section 2)."""
    rows = anchors or range(len(entity))
    removed = _removed(duplicates, rows)
    of_entities, of_mentions = (
        diagonal_cross_entropy(own[rows.start : rows.stop] @ other.T, removed, rows.start)
        for own, other in ((entity, mention), (mention, entity))
    )
    return (of_entities + of_mentions) / 2


def mclet_loss(
    a: Tensor, b: Tensor, tau: float, duplicates: Tensor | None = None, anchors: range | None = None
) -> Tensor:
    """MCLET on projected, L2-normalised a, b [B, d]: mean over anchors and both directions (spec section 2).

    It is the paper's ICL without weights, of rows that are normalised already.
    """
    rows = anchors or range(len(a))
    removed = _removed(duplicates, rows)
    both = (_icl_anchors(own, other, rows, tau, 1.0, 1.0, "paper", removed) for own, other in ((a, b), (b, a)))
    return sum(both, a.new_zeros(())) / 2


def diagonal_cross_entropy(logits: Tensor, duplicates: Tensor | None = None, first: int = 0) -> Tensor:
    """Cross entropy of rows [b, B] whose target is column ``first + row``; columns marked in ``duplicates`` [b, B]
    other than the target are left out."""
    target = torch.arange(logits.shape[0], device=logits.device) + first
    if duplicates is not None:
        keep = F.one_hot(target, logits.shape[1]).bool()
        logits = logits.masked_fill(duplicates & ~keep, -math.inf)
    return F.cross_entropy(logits, target)
