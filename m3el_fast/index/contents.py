"""What is in the entities of a source, so that equal texts and images are known wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from tqdm import tqdm

from m3el_fast.data.tokenized import TokenizedSide
from m3el_fast.encode import Source
from m3el_fast.frozen import TowerStore
from m3el_fast.index.lookup import digests

_IMAGES = 64  # decoded at a time


@dataclass(frozen=True)
class Contents:
    """The texts and evaluation images of n entities.

    Attributes:
        text_key: [n] int64, the first 8 bytes of BLAKE2b of the token ids: equal exactly where these are.
        keys: [u] int64 image keys of the source, one of each distinct image, in the order in which entities use them.
        digests: [u, 2] int64, the first 16 bytes of BLAKE2b of the decoded pixels; (0, 0) = no image.
        image: [n] int64, the place in ``keys`` of each entity's image.
    """

    text_key: Tensor
    keys: Tensor
    digests: Tensor
    image: Tensor

    def take(self, rows: Tensor) -> Contents:
        """Those of the entities ``rows`` [m] int64."""
        used, image = _in_order_of_use(self.image[rows])
        return Contents(self.text_key[rows], self.keys[used], self.digests[used], image)


_known: WeakKeyDictionary[TokenizedSide, Contents] = WeakKeyDictionary()


def contents(source: Source, progress: bool) -> Contents:
    """The contents of a source; where it is no data set that was read from files, its keys stand for them."""
    data = source.source if isinstance(source, TowerStore) else source
    if not isinstance(data, TokenizedSide):
        return _contents(source, source.text_key, progress)
    if data not in _known:  # an index is built at every validation of a training run
        _known[data] = _contents(data, _text_keys(data), progress)
    return _known[data]


def _contents(source: Source, text_key: Tensor, progress: bool) -> Contents:
    keys, image = source.image_key.unique(return_inverse=True)
    digest = _pixel_digests(source, keys, progress) if isinstance(source, TokenizedSide) else _key_digests(keys)
    # two files may decode to the same pixels
    digest, same = digest.unique(dim=0, return_inverse=True)
    key = torch.empty(len(digest), dtype=torch.int64).index_copy_(0, same.flip(0), keys.flip(0))  # the first of each
    used, image = _in_order_of_use(same[image])
    return Contents(text_key, key[used], digest[used], image)


def _in_order_of_use(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values of ``rows`` [n] int64 as they come, and the place of each row among them."""
    values, inverse = rows.unique(return_inverse=True)
    first = torch.full((len(values),), len(rows)).scatter_reduce_(0, inverse, torch.arange(len(rows)), "amin")
    order = first.argsort()
    return values[order], torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))[inverse]


def _text_keys(data: TokenizedSide) -> Tensor:
    return digests((row.data for row in data.input_ids.numpy()), 1)[:, 0]


def _pixel_digests(data: TokenizedSide, keys: Tensor, progress: bool) -> Tensor:
    parts = [torch.zeros(int((keys < 0).sum()), 2, dtype=torch.int64)]  # keys ascend, and -1 is no image
    with tqdm(total=len(keys), desc="reading images", unit="image", disable=not progress, leave=False) as bar:
        for block in keys[keys >= 0].split(_IMAGES):
            parts.append(digests((image.data for image in data.images(block).pixels.numpy()), 2))
            bar.update(len(block))
    return torch.cat(parts)


def _key_digests(keys: Tensor) -> Tensor:
    there = keys >= 0
    return torch.stack([torch.where(there, keys, 0), there.long()], dim=1)
