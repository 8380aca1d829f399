"""Cross-modal contexts (spec sections 3.2 and 5.4)."""

from __future__ import annotations

from torch import Tensor

from m3el_fast.ops import reference
from m3el_fast.ops.checks import expect, shape
from m3el_fast.ops.reference import CrossModalWeights


def cross_modal_context(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> Tensor:
    """Cross-modal context ``out`` [n, d] of one side and one direction (spec sections 3.2 and 5.4, M3EL Eq. 6-7).

    Args:
        glob: [n, d] projected global features; local: [n, L, d] projected local features of the other modality.
        weights: of the unit; with fusion weights, the released code's T2V-only form.

    Raises:
        ValueError: shapes do not match, or the number of heads has no temperatures.
    """
    n, d = shape("glob", glob, 2)
    expect("local", local, (n, shape("local", local, 3)[1], d))
    if weights.head_weight.shape[0] not in reference.HEAD_TEMPERATURES:
        raise ValueError(f"head_weight: expected 1 to 8 heads, got {weights.head_weight.shape[0]}")
    return reference.cross_modal_context(glob, local, weights)
