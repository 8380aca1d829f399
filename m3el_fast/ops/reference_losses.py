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
    duplicates: Tensor | None = None,  # [B, B] bool
) -> Tensor:
    """ICL of one modality: mean over entity anchors and mention anchors, halved (spec section 2, M3EL Eq. 2-3)."""
    e, m = F.normalize(entity, dim=-1), F.normalize(mention, dim=-1)
    em = e @ m.T / tau
    of_entities = _icl_anchors(em, e @ e.T / tau, beta, gamma, variant, duplicates)
    of_mentions = _icl_anchors(em.T, m @ m.T / tau, beta, gamma, variant, duplicates)
    return (of_entities + of_mentions) / 2


def _icl_anchors(
    other: Tensor, same: Tensor, beta: float, gamma: float, variant: str, duplicates: Tensor | None
) -> Tensor:
    """Mean loss of the anchors in rows: ``other`` holds the positives on its diagonal, ``same`` the anchor itself."""
    eye = torch.eye(other.shape[0], dtype=torch.bool, device=other.device)
    if variant == "paper":
        # weight * exp(x) = exp(x + log weight); a weight of 0 removes the term
        positive = other.diagonal()
        other = torch.where(eye, other, other + _log(gamma))
        same = (same + _log(beta)).masked_fill(eye, -math.inf)
    else:
        other, same = gamma * other, (beta * same).masked_fill(eye, 0.0)
        positive = other.diagonal()
    if duplicates is not None:
        removed = duplicates & ~eye
        other, same = other.masked_fill(removed, -math.inf), same.masked_fill(removed, -math.inf)
    return (torch.cat([other, same], dim=1).logsumexp(dim=1) - positive).mean()


def _log(weight: float) -> float:
    return math.log(weight) if weight > 0 else -math.inf


def infonce_loss(entity: Tensor, mention: Tensor, duplicates: Tensor | None = None) -> Tensor:
    """InfoNCE of one modality on raw dot products: mean of row and column cross entropies (spec section 2)."""
    logits = entity @ mention.T
    return (diagonal_cross_entropy(logits, duplicates) + diagonal_cross_entropy(logits.T, duplicates)) / 2


def mclet_loss(a: Tensor, b: Tensor, tau: float, duplicates: Tensor | None = None) -> Tensor:
    """MCLET on projected, L2-normalised a, b [B, d]: mean over anchors and both directions (spec section 2)."""
    ab = a @ b.T / tau
    return (_mclet_anchors(ab, a @ a.T / tau, duplicates) + _mclet_anchors(ab.T, b @ b.T / tau, duplicates)) / 2


def _mclet_anchors(other: Tensor, same: Tensor, duplicates: Tensor | None) -> Tensor:
    eye = torch.eye(other.shape[0], dtype=torch.bool, device=other.device)
    positive = other.diagonal()
    same = same.masked_fill(eye, -math.inf)
    if duplicates is not None:
        removed = duplicates & ~eye
        other, same = other.masked_fill(removed, -math.inf), same.masked_fill(removed, -math.inf)
    return (torch.cat([other, same], dim=1).logsumexp(dim=1) - positive).mean()


def diagonal_cross_entropy(logits: Tensor, duplicates: Tensor | None = None, first: int = 0) -> Tensor:
    """Cross entropy of rows [b, B] whose target is column ``first + row``; columns marked in ``duplicates`` [b, B]
    other than the target are left out."""
    target = torch.arange(logits.shape[0], device=logits.device) + first
    if duplicates is not None:
        keep = F.one_hot(target, logits.shape[1]).bool()
        logits = logits.masked_fill(duplicates & ~keep, -math.inf)
    return F.cross_entropy(logits, target)
