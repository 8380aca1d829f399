"""Contrastive losses: their terms, and the tiles in which their kernels go over a matrix of logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton

from .cases import launch_options

_LOG2E = math.log2(math.e)
ROW_OPTIONS = launch_options(4, 3)  # of kernels over rows, not over a matrix


class Terms(NamedTuple):
    """The terms of a contrastive loss.

    Attributes:
        other_scale, other_weight: of columns on the other side.
        same_scale, same_weight: of columns on the anchor's own side; None = there are none.
        self_term: whether the anchor itself counts, with the logit 0.
        normalise: whether rows are divided by their norms.
    """

    other_scale: float
    other_weight: float
    same_scale: float | None
    same_weight: float
    self_term: bool
    normalise: bool

    def scalars(self) -> dict[str, float]:
        """The kernels' arguments, for logits in base 2."""
        return {
            "other_scale": self.other_scale * _LOG2E,
            "other_shift": _log2(self.other_weight),
            "same_scale": (self.same_scale or 0.0) * _LOG2E,
            "same_shift": _log2(self.same_weight),
        }

    def bound(self) -> float | None:
        """A bound of all logits in base 2 that can stand for every maximum in fp32, or None.

        No anchor's sum, relative to the bound, falls below its positive's term; that has to stay so far above the
        smallest number of fp32 that terms of 2^-24 of it count as well.
        """
        s = self.scalars()
        if not self.normalise:
            return None
        bound = max(abs(s["other_scale"]), abs(s["same_scale"])) + max(0.0, s["other_shift"], s["same_shift"])
        return bound if bound + abs(s["other_scale"]) <= 100 else None


def _log2(weight: float) -> float:
    return math.log2(weight) if weight > 0 else -math.inf


class Tile(NamedTuple):
    """The square tiles of a [2B, 2B] matrix, and how a kernel over them is launched."""

    size: int
    depth: int
    options: dict[str, int]


def tile_of(batch: int, d: int, dtype: torch.dtype, masked: bool) -> Tile:
    """Tiles of 128, but of 64 where there would be too few or where ``masked``, with two addresses of the mask for each
    place. fp32 takes shallow steps: its operands are split in registers, and deeper ones do not fit beside the tile on
    sm_80."""
    small = masked or batch <= 1024
    deepest = 64 if dtype.itemsize == 2 else 32 if small else 16
    depth = min(deepest, max(16, triton.next_power_of_2(d)))
    return Tile(64 if small else 128, depth, launch_options(4 if small and not masked else 8, 3))


def precision_of(dtype: torch.dtype) -> str:
    """``input_precision`` of products: three of TF32 for fp32 (relative error about 2^-21); half types have their own.

    fp16 operands meet fp32 coefficients in products of TF32, which has as many digits as fp16."""
    return "tf32x3" if dtype == torch.float32 else "tf32"
