"""The contrastive losses (spec section 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from m3el_fast.ops import gpu, native, native_losses, reference_losses, triton_losses
from m3el_fast.ops.backends import Backend, choose
from m3el_fast.ops.checks import expect, shape

_Terms = tuple[float, float, float | None, float, bool, bool]


def icl_loss(
    entity: Tensor,
    mention: Tensor,
    *,
    tau: float = 0.03,
    beta: float = 0.8,
    gamma: float = 1.0,
    variant: Literal["paper", "released"] = "paper",
    duplicates: Tensor | None = None,
    anchors: range | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Intra-modal contrastive loss of one modality (spec section 2, M3EL Eq. 2-3).

    Args:
        entity, mention: [B, d] features, any float dtype; row i of one belongs to row i of the other.
        tau: temperature; beta: weight of the anchor's own side; gamma: weight of the other side.
        variant: ``paper`` weighs terms of the denominator, ``released`` weighs logits.
        duplicates: [B] int64, the gold entities: pairs (i, j), i != j, of the same one are left out of every
            denominator; or [B, B] bool, the pairs of anchor i and column j to leave out.
        anchors: the rows whose losses count, None = all; all rows are their candidates. A process of a distributed run
            takes its own rows of gathered features: the mean over processes is the whole batch's loss.
        backend: see the table in :mod:`m3el_fast.ops`. The native one computes in fp32. Triton multiplies fp32 by three
            products of TF32 (relative error about 2^-21) and rounds the gradient's coefficients to the features'
            digits.

    Returns:
        Scalar: the mean over entity anchors and over mention anchors, halved; fp32 for features in half precision,
        else in their dtype.

    Raises:
        ValueError: shapes do not match, the batch is empty, the variant is unknown, the anchors are no rows of the
            batch, or the backend cannot serve.
    """
    anchors = _check(entity, mention, duplicates, anchors)
    if variant not in ("paper", "released"):
        raise ValueError(f"variant: expected 'paper' or 'released', got {variant!r}")
    other, same = (1.0, 1.0) if variant == "paper" else (gamma, beta)
    weights = (gamma, beta) if variant == "paper" else (1.0, 1.0)
    terms = (other / tau, weights[0], same / tau, weights[1], variant == "released", True)

    def reference(e: Tensor, m: Tensor) -> Tensor:
        return reference_losses.icl_loss(e, m, tau, beta, gamma, variant, duplicates, anchors)

    return _loss(entity, mention, duplicates, anchors, backend, terms, reference)


def infonce_loss(
    entity: Tensor,
    mention: Tensor,
    duplicates: Tensor | None = None,
    *,
    anchors: range | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """InfoNCE of one modality on raw dot products of [B, d] features: scalar (spec section 2).

    The arguments, the dtype and the errors are those of :func:`icl_loss`.
    """
    anchors = _check(entity, mention, duplicates, anchors)

    def reference(e: Tensor, m: Tensor) -> Tensor:
        return reference_losses.infonce_loss(e, m, duplicates, anchors)

    return _loss(entity, mention, duplicates, anchors, backend, (1.0, 1.0, None, 1.0, False, False), reference)


def mclet_loss(
    a: Tensor,
    b: Tensor,
    *,
    tau: float = 0.6,
    duplicates: Tensor | None = None,
    anchors: range | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """MCLET loss of projected, L2-normalised [B, d] features: scalar (spec section 2).

    The other arguments, the dtype and the errors are those of :func:`icl_loss`.
    """
    anchors = _check(a, b, duplicates, anchors)

    def reference(a: Tensor, b: Tensor) -> Tensor:
        return reference_losses.mclet_loss(a, b, tau, duplicates, anchors)

    return _loss(a, b, duplicates, anchors, backend, (1 / tau, 1.0, 1 / tau, 1.0, False, False), reference)


def _loss(
    entity: Tensor,
    mention: Tensor,
    duplicates: Tensor | None,
    anchors: range,
    backend: Backend,
    terms: _Terms,
    reference: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    obstacles = _native_obstacle(entity, mention, duplicates, terms), _triton_obstacle(entity, mention, duplicates)
    chosen = choose(backend, entity, *obstacles)
    loss: Tensor
    if chosen == "triton":
        loss = triton_losses.contrastive(entity, mention, duplicates, anchors.start, anchors.stop, *terms)[0]
        return loss
    entity, mention = _wide(entity), _wide(mention)
    if chosen == "native":
        keep = native.needs_gradient(entity, mention) is not None
        loss = native_losses.contrastive(entity, mention, duplicates, anchors.start, anchors.stop, *terms, keep)[0]
        return loss
    return reference(entity, mention)


def _native_obstacle(entity: Tensor, mention: Tensor, duplicates: Tensor | None, terms: _Terms) -> str | None:
    if terms[2] is None:
        return "the kernel has no loss without terms of the same side"
    if entity.shape[1] == 0:
        return "the kernel takes no empty tensors"
    if duplicates is not None and duplicates.device.type != "cpu":
        return "the kernel takes no tensors outside the CPU"
    return native.not_cpu_floats(entity, mention)


def _triton_obstacle(entity: Tensor, mention: Tensor, duplicates: Tensor | None) -> str | None:
    if entity.shape[1] == 0:
        return "the kernel takes no empty tensors"
    if entity.dtype != mention.dtype:
        return f"the kernel takes features of one dtype, got {entity.dtype} and {mention.dtype}"
    if duplicates is not None and duplicates.device != entity.device:
        return f"the kernel takes tensors of one device, got {entity.device} and {duplicates.device}"
    return gpu.not_gpu_floats(entity, mention)


def _wide(features: Tensor) -> Tensor:
    return features.float() if features.dtype.itemsize == 2 else features


def _check(a: Tensor, b: Tensor, duplicates: Tensor | None, anchors: range | None) -> range:
    rows, width = shape("entity", a, 2)
    expect("mention", b, (rows, width))
    if rows == 0:
        raise ValueError("entity: expected at least one row, got 0")
    if duplicates is not None:
        if duplicates.dtype not in (torch.bool, torch.int64):
            raise ValueError(f"duplicates: expected bool pairs or int64 entities, got {duplicates.dtype}")
        expect("duplicates", duplicates, (rows,) if duplicates.dtype == torch.int64 else (rows, rows))
    if anchors is None:
        return range(rows)
    if anchors.step != 1 or not 0 <= anchors.start < anchors.stop <= rows:
        raise ValueError(f"anchors: expected a range of rows in 0..{rows - 1}, got {anchors}")
    return anchors
