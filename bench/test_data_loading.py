"""Pictures per second: decoding JPEG, filling the image cache, and reading from it.

``test_training_step.py`` measures batches against the step that needs them. The photographs are 500 x 375
pixels, a gradient with noise, about 60 kB as JPEG; files are in the page cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.measure import Measure
from bench.memory import peak_memory
from bench.scales import Scale
from m3el_fast.data.cache import ImageCache
from m3el_fast.data.images import decode_image, read_image_file

DECODING = "decoding JPEG, one thread"
DECODED = 64  # pictures of a timed call, at most


@pytest.fixture(scope="module")
def photographs(scale: Scale, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    return [photograph(folder / f"{i}.jpg", i) for i in range(scale.images)]


@pytest.fixture(scope="module")
def fill(
    scale: Scale, photographs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], ImageCache]]:
    """Builds a cache of all photographs in a new folder, with as many workers as torch has threads."""
    folder, number = tmp_path_factory.mktemp("caches"), count()

    def fill() -> ImageCache:
        target, workers = folder / str(next(number)), torch.get_num_threads()
        return ImageCache.build(photographs, scale.image_size, target, strict=True, workers=workers, progress=False)

    yield fill


@pytest.fixture(scope="module")
def cache(fill: Callable[[], ImageCache], photographs: list[Path], scale: Scale) -> ImageCache:
    """Checked to hold what decoding gives."""
    cache = fill()
    for path in photographs[:: max(1, len(photographs) // 8)]:
        expected = decode_image(read_image_file(path), scale.image_size)
        assert (cache.pixels(torch.tensor([cache.row(path)]))[0].numpy() == expected).all()
    return cache


def test_decoding(photographs: list[Path], measure: Measure, scale: Scale) -> None:
    some = photographs[:DECODED]

    def decode() -> None:
        for path in some:
            decode_image(read_image_file(path), scale.image_size)

    measure.time(decode, scale.rounds)
    measure.record(DECODING, items=len(some), unit="images", peak=peak_memory(decode), size=scale.image_size)


def test_filling(
    cache: ImageCache, fill: Callable[[], ImageCache], photographs: list[Path], measure: Measure, scale: Scale
) -> None:
    measure.time(fill, scale.rounds)
    threads = torch.get_num_threads()
    measure.record(
        "filling the image cache",
        items=len(photographs),
        unit="images",
        peak=peak_memory(fill),
        threads=threads,
    )


def test_reading(
    cache: ImageCache, photographs: list[Path], measure: Measure, scale: Scale, read_bandwidth: float
) -> None:
    """Random batches of pictures, copied out of the cache's map. The limit is reading their bytes."""
    rows = torch.tensor([cache.row(path) for path in photographs])
    draw, batch = torch.Generator().manual_seed(0), min(scale.batch, len(rows))

    def read() -> None:
        cache.pixels(rows[torch.randperm(len(rows), generator=draw)[:batch]])

    measure.time(read, scale.short_rounds)
    measure.record(
        "reading from the image cache",
        items=batch,
        unit="images",
        peers=(DECODING,),
        limit=3 * scale.image_size**2 / read_bandwidth,
        peak=peak_memory(read),
        batch=batch,
    )


def photograph(path: Path, seed: int) -> Path:
    """Write a JPEG of 500 x 375 pixels."""
    draw = np.random.default_rng(seed)
    ramp = np.linspace(draw.uniform(0, 120, 3), draw.uniform(120, 255, 3), 500)[None].repeat(375, axis=0)
    pixels = np.clip(ramp + draw.normal(0, 12, ramp.shape), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=85)
    return path
