"""The contrastive losses (spec section 2)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from m3el_fast.ops import reference_losses
from m3el_fast.ops.checks import expect, shape


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
    return reference_losses.icl_loss(entity, mention, tau, beta, gamma, variant, duplicates)


def infonce_loss(entity: Tensor, mention: Tensor, duplicates: Tensor | None = None) -> Tensor:
    """InfoNCE of one modality on raw dot products of [B, d] features: scalar (spec section 2). Raises as icl_loss."""
    _check_pair(entity, mention, duplicates)
    return reference_losses.infonce_loss(entity, mention, duplicates)


def mclet_loss(a: Tensor, b: Tensor, *, tau: float = 0.6, duplicates: Tensor | None = None) -> Tensor:
    """MCLET loss of projected, L2-normalised [B, d] features: scalar (spec section 2). Raises as icl_loss."""
    _check_pair(a, b, duplicates)
    return reference_losses.mclet_loss(a, b, tau, duplicates)


def _check_pair(a: Tensor, b: Tensor, duplicates: Tensor | None) -> None:
    rows, width = shape("entity", a, 2)
    expect("mention", b, (rows, width))
    if rows == 0:
        raise ValueError("entity: expected at least one row, got 0")
    if duplicates is not None:
        expect("duplicates", duplicates, (rows, rows))
