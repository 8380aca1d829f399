"""Decoded images on disk: each distinct content is decoded once, then read through a memory map.

A cache folder holds, for each image size, ``pixels`` (rows of size x size x 3 bytes, only ever appended to) and
``index.sqlite`` (which file has which content, which content has which row).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m3el_fast.data.cache_store import Outcome, Store, look, refuse
from m3el_fast.data.images import ImageReport

_FORMAT = 1  # raised whenever decoding or the files change: old caches are then left aside


class ImageCache:
    """Memory-mapped pixels of a set of image files; made by :meth:`build`.

    Attributes:
        size: height and width of the pixels.
        report: what was missing or unreadable among the files asked for.
    """

    def __init__(self, pixels: NDArray[np.uint8], outcomes: dict[Path, Outcome]) -> None:
        self.size = pixels.shape[1]
        self.report = ImageReport()
        self._pixels = pixels
        self._rows: dict[Path, int] = {}
        for path, outcome in outcomes.items():
            self.report.add(path, outcome if isinstance(outcome, str) else None)
            self._rows[path] = -1 if isinstance(outcome, str) else outcome

    @classmethod
    def build(
        cls, paths: Sequence[Path], size: int, folder: Path, *, strict: bool, workers: int, progress: bool
    ) -> ImageCache:
        """Open the cache in ``folder`` after decoding those of ``paths`` that it lacks.

        Files are recognised by path, size and modification time, contents by SHA-256. Several processes may build at
        once: one decodes, the others wait and find the result.

        Args:
            paths: image files; repeated ones count once.
            size: height and width to decode to.
            folder: where the cache is or will be.
            strict: a missing or unreadable image is an error.
            workers: decoding threads.
            progress: show a progress bar while decoding.

        Raises:
            InputError: too little disk space, a cache that is damaged or cannot be written, or (``strict``) an image
                that cannot be used.
        """
        store = Store(folder / f"v{_FORMAT}-{size}px", size)
        files, outcomes = look(paths, store.home)
        outcomes |= store.known(files)
        if strict:
            refuse(outcomes)
        new = [file for file in files if file.path not in outcomes]
        if new:
            store.require_space(len(new))
            with store.locked():
                outcomes |= store.known(new)  # another process may have decoded them while this one waited
                outcomes |= store.decode([file for file in new if file.path not in outcomes], strict, workers, progress)
        return cls(store.pixels(), {path: outcomes[path] for path in dict.fromkeys(paths)})

    def row(self, path: Path | None) -> int:
        """The row of an image's pixels, -1 where there is none (None, a missing or an unreadable file).

        Raises:
            KeyError: ``path`` was not among the paths of :meth:`build`.
        """
        return -1 if path is None else self._rows[path]

    def pixels(self, rows: Tensor) -> Tensor:
        """Gather pixels.

        Args:
            rows: [n] int64, each a row that :meth:`row` gave, not -1.

        Returns:
            [n, size, size, 3] uint8, a copy in memory.

        Raises:
            ValueError: a row that is not in the cache.
        """
        index = rows.numpy()
        if index.size and not 0 <= index.min() <= index.max() < len(self._pixels):
            raise ValueError(f"expected rows from 0 to {len(self._pixels) - 1}, got {index.min()} to {index.max()}")
        return torch.from_numpy(np.take(self._pixels, index, axis=0))
