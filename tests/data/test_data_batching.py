from pathlib import Path

import numpy as np
import pytest
import torch

from m3el_fast.data.batching import collate
from m3el_fast.data.cache import ImageCache

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)


@pytest.fixture
def cache() -> ImageCache:
    return ImageCache(PIXELS, {Path(str(i)): i for i in range(5)})


def tokens(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n * 3).view(n, 3), torch.ones(n, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("rows", "distinct"),
    [([3, -1, 0, 3], 2), ([-1, -1], 0), ([4], 1), ([2, 1, 0], 3), ([], 0)],
    ids=["mixed", "no image at all", "one", "all different", "empty"],
)
def test_each_image_once(cache: ImageCache, rows: list[int], distinct: int) -> None:
    ids, mask = tokens(len(rows))
    batch = collate(ids, mask, torch.tensor(rows, dtype=torch.int64), cache)
    assert batch.input_ids is ids
    assert batch.attention_mask is mask
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.shape == (distinct, 4, 4, 3)
    assert batch.image_index.dtype == torch.int64
    assert batch.image_index.shape == (len(rows),)
    for row, index in zip(rows, batch.image_index.tolist(), strict=True):
        if row == -1:
            assert index == -1
        else:
            np.testing.assert_array_equal(batch.pixels[index].numpy(), PIXELS[row])


def test_lengths_must_agree(cache: ImageCache) -> None:
    with pytest.raises(ValueError, match="expected ids, mask and image_rows of one length, got 2, 2 and 3"):
        collate(*tokens(2), torch.tensor([0, 1, 2]), cache)


@pytest.mark.parametrize("row", [-2, 5])
def test_unknown_row(cache: ImageCache, row: int) -> None:
    with pytest.raises(ValueError, match=r"expected rows from 0 to 4, got"):
        collate(*tokens(1), torch.tensor([row]), cache)
