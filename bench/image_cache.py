"""Images per second for training batches: JPEG decoding against the memory-mapped cache.

``python -m bench.image_cache [--images 1000] [--size 224]`` makes photographs of 500 x 375 pixels (a gradient with
noise, about 60 kB as JPEG) in a temporary folder, builds the cache, then reads random batches of 128 either way.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from m3el_fast.data.cache import ImageCache
from m3el_fast.data.images import decode_image, read_image_file

BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [photograph(Path(folder) / f"{i}.jpg", i) for i in range(args.images)]
        cache = ImageCache.build(paths, args.size, Path(folder) / "cache", strict=True, workers=2, progress=True)
        rows = torch.tensor([cache.row(path) for path in paths])

        def decode(batch: list[int]) -> None:
            for i in batch:
                decode_image(read_image_file(paths[i]), args.size)

        decoded = rate(decode, args.images, 5)
        cached = rate(lambda batch: cache.pixels(rows[batch]), args.images, 50)
    print(f"{args.images} images at {args.size} pixels, batches of {BATCH}, one thread, files in the page cache")
    print(f"decoding JPEG: {decoded:,.0f} images/s; from the cache: {cached:,.0f} images/s ({cached / decoded:,.0f} x)")


def photograph(path: Path, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    ramp = np.linspace(draw.uniform(0, 120, 3), draw.uniform(120, 255, 3), 500)[None].repeat(375, axis=0)
    pixels = np.clip(ramp + draw.normal(0, 12, ramp.shape), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=85)
    return path


def rate(read: Callable[[list[int]], object], images: int, batches: int) -> float:
    """Images per second: the median over random batches."""
    draw = np.random.default_rng(0)
    seconds = []
    for _ in range(batches):
        batch = draw.choice(images, min(BATCH, images), replace=False).tolist()
        start = time.perf_counter()
        read(batch)
        seconds.append(time.perf_counter() - start)
    return min(BATCH, images) / statistics.median(seconds)


if __name__ == "__main__":
    main()
