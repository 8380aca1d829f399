"""The released code's feature tensors as :class:`~m3el_fast.features.Features`, checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from m3el_fast.errors import InputError
from m3el_fast.features import FeatureDims
from m3el_fast.matching import Matcher

Named = dict[str, Tensor]
"""Four tensors of n items by the caller's names for them, in the order of :class:`FeatureDims`."""


def dims_of(matcher: Matcher) -> FeatureDims:
    """The widths of the features that ``matcher`` reads."""
    names = ("text_global", "text_local", "image_global", "image_local")
    norms: list[nn.LayerNorm] = [getattr(matcher, f"{name}_norm") for name in names]
    return FeatureDims(*(norm.weight.shape[0] for norm in norms))


def check(tensors: Named, dims: FeatureDims) -> int:
    """The number of items.

    Raises:
        InputError: a shape does not match; names the tensor.
    """
    (first, text), *_ = tensors.items()
    count = len(text) if text.dim() else 0
    for (name, tensor), width, tokens in zip(tensors.items(), vars(dims).values(), (0, 1, 0, 1), strict=True):
        shape = tuple(tensor.shape)
        if len(shape) != 2 + tokens or shape[0] != count or shape[-1] != width:
            rows = "n" if name == first else f"{count} (rows of {first})"
            raise InputError(name, f"shape [{', '.join([rows, *['tokens'] * tokens, str(width)])}]", list(shape))
    return count


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Matching in the weights' precision: scores reach 80, which is more than bf16's three digits can tell apart."""
    with torch.autocast(device.type, enabled=False):
        yield
