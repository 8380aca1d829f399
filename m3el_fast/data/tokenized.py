"""One side of a data set ready for the encoder: token ids and image rows of every mention or every entity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m3el_fast.data.batching import collate
from m3el_fast.data.cache import ImageCache
from m3el_fast.features import Images, Inputs, Texts

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]

_CHUNK = 4096


class TokenizedSide:
    """Token ids of n texts and the cached images of each.

    Args:
        texts: n strings.
        images: the image paths of each item; the first is the evaluation image (spec section 1).
        tokenize: texts -> ids, mask, each [n, Lt] int64.
        cache: holds the images; an image that it could not decode counts as absent.

    Attributes:
        input_ids, attention_mask: [n, Lt].
        text_key: [n] int64, equal exactly where the token ids are equal.
        image_key: [n] int64, the cache row of the evaluation image, -1 = none.
    """

    def __init__(
        self, texts: Sequence[str], images: Sequence[Sequence[Path]], tokenize: Tokenize, cache: ImageCache
    ) -> None:
        parts = [tokenize(texts[i : i + _CHUNK]) for i in range(0, len(texts), _CHUNK)]
        self.input_ids = torch.cat([ids.to(torch.int32) for ids, _ in parts])
        self.attention_mask = torch.cat([mask.to(torch.int8) for _, mask in parts])
        self.cache = cache
        rows = [[row for row in map(cache.row, paths) if row >= 0] for paths in images]
        self._count = torch.tensor([len(r) for r in rows])
        self._start = self._count.cumsum(0) - self._count
        self._rows = torch.tensor([row for r in rows for row in r] + [-1])
        self.image_key = self.image_rows(torch.arange(len(texts)))
        self.text_key = torch.from_numpy(np.unique(self.input_ids.numpy(), axis=0, return_inverse=True)[1].reshape(-1))

    def __len__(self) -> int:
        return len(self.input_ids)

    def inputs(self, rows: Tensor, share: Tensor | None = None) -> Inputs:
        """The items ``rows`` [b] int64. ``share`` [b] in [0, 1) draws from each item's images (training); None = the
        first (evaluation)."""
        return collate(*self.texts(rows), self.image_rows(rows, share), self.cache)

    def texts(self, rows: Tensor) -> Texts:
        """The texts of the items ``rows`` [b] int64."""
        return Texts(self.input_ids[rows].long(), self.attention_mask[rows].long())

    def images(self, keys: Tensor) -> Images:
        """The images ``keys`` [u] int64, as in :attr:`image_key`."""
        there = keys >= 0
        return Images(self.cache.pixels(keys[there]), (there.cumsum(0) - 1).masked_fill(~there, -1))

    def image_rows(self, rows: Tensor, share: Tensor | None = None) -> Tensor:
        """Cache rows [b] int64 of the images of the items ``rows``, -1 = none; ``share`` as in :meth:`inputs`."""
        count = self._count[rows]
        chosen = torch.zeros_like(count) if share is None else (share * count).long()
        # share < 1, but the product may round up to the count
        chosen = torch.minimum(chosen, (count - 1).clamp_min(0))
        return torch.where(count > 0, self._rows[torch.where(count > 0, self._start[rows] + chosen, -1)], -1)

    def distinct_images(self) -> Tensor:
        """All cache rows that any item has, sorted, preceded by -1."""
        rows: Tensor = self._rows.unique()
        return rows
