"""The named tensors that flow through the package (spec sections 1 to 3)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

Vectors = dict[str, Tensor]
"""Named tensors with one row per item, or per distinct image."""


@dataclass(frozen=True)
class FeatureDims:
    """Widths of the four features: dt, the text tower's own width, and dv twice (spec section 1)."""

    text_global: int
    text_local: int
    image_global: int
    image_local: int


@dataclass(frozen=True)
class Inputs:
    """What the encoder reads for n mentions or n entities.

    Attributes:
        input_ids: [n, Lt] int64 token ids, padded.
        attention_mask: [n, Lt] int64, 1 = token, 0 = padding.
        pixels: [u, size, size, 3] uint8 RGB, the distinct images of the batch (u may be 0).
        image_index: [n] int64, the row of ``pixels`` of each item; -1 = no image (all-zero pixel values).
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixels: Tensor
    image_index: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str) -> Inputs:
        return Inputs(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


@dataclass(frozen=True)
class TowerOutputs:
    """The two towers' outputs before the trainable projections; what ``--freeze-encoder`` stores.

    Attributes:
        text_global: [n, dt], L2-normalised where the tower normalises.
        text_local: [n, Lt, text width].
        image_global: [u, image embedding width], one row per distinct image.
        image_local: [u, Lv, vision width].
        image_index: [n] int64, the row of ``image_*`` of each item (never negative: "no image" is a row).
        attention_mask: [n, Lt] int64 or bool, nonzero = token.
    """

    text_global: Tensor
    text_local: Tensor
    image_global: Tensor
    image_local: Tensor
    image_index: Tensor
    attention_mask: Tensor

    def __len__(self) -> int:
        return self.text_global.shape[0]

    def to(self, device: torch.device | str) -> TowerOutputs:
        return TowerOutputs(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


class Texts(NamedTuple):
    """What the text tower reads of n texts: the first two of :class:`Inputs`."""

    input_ids: Tensor
    attention_mask: Tensor


class Images(NamedTuple):
    """What the vision tower reads of n images: the last two of :class:`Inputs`, one row per image."""

    pixels: Tensor
    image_index: Tensor


class TextOutputs(NamedTuple):
    """The text tower's outputs for n texts, as in :class:`TowerOutputs`."""

    text_global: Tensor
    text_local: Tensor
    attention_mask: Tensor


class ImageOutputs(NamedTuple):
    """The vision tower's outputs for n images, as in :class:`TowerOutputs` but one row per image asked for."""

    image_global: Tensor
    image_local: Tensor


@dataclass(frozen=True)
class Features:
    """The encoder's output for n mentions or n entities (spec section 1), before the matcher's LayerNorms.

    Attributes:
        text_global: [n, dt].
        text_local: [n, Lt, text width].
        image_global: [u, dv].
        image_local: [u, Lv, dv].
        image_index: [n] int64, the row of ``image_*`` of each item, so that a shared image is matched once
            (spec section 5.6); None = row i belongs to item i, u = n.
        text_mask: [n, Lt] bool, True = token; used by models with ``token_mask`` only. None = all are tokens.
    """

    text_global: Tensor
    text_local: Tensor
    image_global: Tensor
    image_local: Tensor
    image_index: Tensor | None = None
    text_mask: Tensor | None = None

    def __len__(self) -> int:
        return self.text_global.shape[0]


@dataclass(frozen=True)
class Scores:
    """Matching scores, each [M, E]; None where the model's form lacks that component (spec sections 3.3 and 4)."""

    union: Tensor
    text: Tensor | None = None
    image: Tensor | None = None
    cross: Tensor | None = None
    t2v: Tensor | None = None
    v2t: Tensor | None = None
