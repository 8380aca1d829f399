"""Collation: token ids and image rows of n items -> the encoder's :class:`Inputs`."""

from __future__ import annotations

import torch
from torch import Tensor

from m3el_fast.data.cache import ImageCache
from m3el_fast.features import Inputs


def collate(ids: Tensor, mask: Tensor, image_rows: Tensor, cache: ImageCache) -> Inputs:
    """Gather the distinct images of a batch once (spec section 5.6).

    Args:
        ids: [n, Lt] int64 token ids.
        mask: [n, Lt] int64.
        image_rows: [n] int64 rows of ``cache``, -1 = no image.
        cache: where the pixels are.

    Raises:
        ValueError: the three tensors disagree on n, or a row is not in the cache.
    """
    if not len(ids) == len(mask) == len(image_rows):
        lengths = f"{len(ids)}, {len(mask)} and {len(image_rows)}"
        raise ValueError(f"expected ids, mask and image_rows of one length, got {lengths}")
    distinct, index = torch.unique(image_rows, return_inverse=True)
    if len(distinct) and distinct[0] == -1:
        distinct, index = distinct[1:], index - 1
    return Inputs(input_ids=ids, attention_mask=mask, pixels=cache.pixels(distinct), image_index=index)
