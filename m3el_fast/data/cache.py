"""Decoded images on disk: each distinct content is decoded once, then read through a memory map.

A cache folder holds, for each image size, ``pixels`` (rows of size x size x 3 bytes, only ever appended to) and
``index.sqlite`` (which file has which content, which content has which row). A row is in use once the index says so,
and the index is committed after the pixels are on disk: a killed build leaves finished rows, and the next one goes on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import warnings
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from io import BufferedRandom
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from m3el_fast.data.images import MISSING, ImageReport, UnreadableImage, decode_image, read_image_file
from m3el_fast.errors import InputError

_FORMAT = 1  # raised whenever decoding or the files change: old caches are then left aside
_CHUNK = 256  # images between two commits
_SCHEMA = """
CREATE TABLE files (path BLOB PRIMARY KEY, bytes INTEGER, mtime_ns INTEGER, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE contents (digest BLOB PRIMARY KEY, row INTEGER UNIQUE, problem TEXT) WITHOUT ROWID;
"""

Outcome = int | str  # a row of pixels, or the problem that left none


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
            InputError: too little disk space, a damaged cache, or (``strict``) an image that cannot be used.
        """
        store = _Store(folder / f"v{_FORMAT}-{size}px", size)
        files, outcomes = _look(paths, store.home)
        outcomes |= store.known(files)
        if strict:
            _refuse(outcomes)
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


class _File(NamedTuple):
    """An image file as it is now; ``key`` is its path from the cache, so that both may move together."""

    path: Path
    key: bytes
    size: int
    mtime_ns: int


class _Content(NamedTuple):
    """What a file holds; ``digest`` is None where it could not be read at all (nothing to remember then)."""

    digest: bytes | None
    pixels: NDArray[np.uint8] | None = None
    problem: str = ""


class _Store:
    """The files of one cache folder for one image size."""

    def __init__(self, home: Path, size: int) -> None:
        self.home, self.size, self.row_bytes = home, size, size * size * 3
        self.index_path, self.pixels_path = home / "index.sqlite", home / "pixels"

    def known(self, files: Sequence[_File]) -> dict[Path, Outcome]:
        """The outcomes of those files that the index has, unchanged since."""
        if not self.index_path.exists():
            return {}
        with self._index() as index:
            query = "SELECT path, bytes, mtime_ns, coalesce(row, problem) FROM files JOIN contents USING (digest)"
            stored = {key: (size, mtime_ns, outcome) for key, size, mtime_ns, outcome in index.execute(query)}
        entries = ((file, stored.get(file.key)) for file in files)
        return {file.path: entry[2] for file, entry in entries if entry and entry[:2] == (file.size, file.mtime_ns)}

    def require_space(self, images: int) -> None:
        """Refuse before anything is written; every file counts as a content of its own.

        Raises:
            InputError: naming the space needed and the space free.
        """
        place = next(folder for folder in (self.home, *self.home.absolute().parents) if folder.exists())
        needed, free = images * self.row_bytes, shutil.disk_usage(place).free
        if needed > free:
            expected = f"{needed / 1e9:.2f} GB free for {images:,} images of {self.size} x {self.size} pixels"
            raise InputError(self.home, expected, f"{free / 1e9:.2f} GB", "Free some, or put the cache on another disk")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One builder at a time; the lock ends with its process. Creates what is not there yet."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(self.home, "a folder for the image cache", "a file in its place") from None
        with FileLock(self.home / "lock"):
            if not self.index_path.exists():
                fresh = self.home / "index.sqlite.new"
                fresh.unlink(missing_ok=True)
                with closing(sqlite3.connect(fresh)) as index:
                    index.executescript(_SCHEMA)
                self.pixels_path.touch()
                os.replace(fresh, self.index_path)
            yield

    def decode(self, files: Sequence[_File], strict: bool, workers: int, progress: bool) -> dict[Path, Outcome]:
        """Append the pixels of ``files``, committing every few hundred images. Needs the lock."""
        outcomes: dict[Path, Outcome] = {}
        # Threads suffice: PIL decodes and resizes without the interpreter's lock. Its warning about huge images becomes
        # an error here, which decode_image turns into the reason.
        with (
            self._index() as index,
            open(self.pixels_path, "r+b") as out,
            ThreadPoolExecutor(workers) as pool,
            tqdm(total=len(files), desc="Decoding images", unit="image", disable=not progress) as bar,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            contents: dict[bytes, Outcome] = dict(index.execute("SELECT digest, coalesce(row, problem) FROM contents"))
            read = partial(_read, size=self.size, contents=contents)
            out.seek(self._row_count(index) * self.row_bytes)
            for start in range(0, len(files), _CHUNK):
                chunk = files[start : start + _CHUNK]
                done = self._append(index, out, contents, list(zip(chunk, pool.map(read, chunk), strict=True)))
                if strict:
                    _refuse(done)
                outcomes |= done
                bar.update(len(chunk))
        return outcomes

    def _append(
        self,
        index: sqlite3.Connection,
        out: BufferedRandom,
        contents: dict[bytes, Outcome],
        results: Sequence[tuple[_File, _Content]],
    ) -> dict[Path, Outcome]:
        outcomes: dict[Path, Outcome] = {}
        fresh: list[tuple[bytes, int | None, str | None]] = []
        for file, content in results:
            if content.digest is None:
                outcomes[file.path] = content.problem
                continue
            if content.digest not in contents:  # else it was known, or a twin came earlier in this chunk
                if content.pixels is None:
                    contents[content.digest] = content.problem
                    fresh.append((content.digest, None, content.problem))
                else:
                    row = out.tell() // self.row_bytes
                    out.write(content.pixels.tobytes())
                    contents[content.digest] = row
                    fresh.append((content.digest, row, None))
            outcomes[file.path] = contents[content.digest]
        out.flush()
        os.fsync(out.fileno())
        with index:
            index.executemany("INSERT INTO contents VALUES (?, ?, ?)", fresh)
            index.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
                [(file.key, file.size, file.mtime_ns, content.digest) for file, content in results if content.digest],
            )
        return outcomes

    def pixels(self) -> NDArray[np.uint8]:
        """[rows, size, size, 3], mapped read-only."""
        rows = 0
        if self.index_path.exists():
            with self._index() as index:
                rows = self._row_count(index)
        if rows == 0:  # an empty file cannot be mapped
            return np.empty((0, self.size, self.size, 3), np.uint8)
        return np.asarray(np.memmap(self.pixels_path, np.uint8, "r", shape=(rows, self.size, self.size, 3)))

    def _row_count(self, index: sqlite3.Connection) -> int:
        (rows,) = index.execute("SELECT coalesce(max(row) + 1, 0) FROM contents").fetchone()
        stored = self.pixels_path.stat().st_size if self.pixels_path.exists() else 0
        if stored < rows * self.row_bytes:
            expected = f"at least {rows * self.row_bytes:,} bytes, the {rows:,} images of its index"
            raise InputError(self.pixels_path, expected, f"{stored:,}", self._remove_hint())
        return int(rows)

    @contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        try:
            uri = f"{self.index_path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, timeout=60)) as index:
                yield index
        except sqlite3.DatabaseError as error:
            raise InputError(self.index_path, "the index of an image cache", error, self._remove_hint()) from None

    def _remove_hint(self) -> str:
        return f"Remove the folder {self.home}; the next run makes it anew"


def _look(paths: Sequence[Path], home: Path) -> tuple[list[_File], dict[Path, Outcome]]:
    """The distinct files that are there, and the problem of each that cannot be looked at."""
    files: list[_File] = []
    problems: dict[Path, Outcome] = {}
    folders: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            problems[path] = MISSING
        except OSError as error:
            problems[path] = error.strerror or str(error)
        else:
            folder, name = os.path.split(path)
            if folder not in folders:
                folders[folder] = os.path.relpath(folder or ".", home)
            key = os.fsencode(os.path.join(folders[folder], name))
            files.append(_File(path, key, found.st_size, found.st_mtime_ns))
    return files, problems


def _refuse(outcomes: dict[Path, Outcome]) -> None:
    for path, outcome in outcomes.items():
        if isinstance(outcome, str):
            raise InputError(path, "a readable image", outcome, "Without strict images it counts as no image")


def _read(file: _File, size: int, contents: Container[bytes]) -> _Content:
    """Runs in a thread; leaves out the pixels of contents that are known."""
    try:
        data = read_image_file(file.path)
    except UnreadableImage as problem:
        return _Content(None, None, str(problem))
    digest = hashlib.sha256(data).digest()
    if digest in contents:
        return _Content(digest)
    try:
        return _Content(digest, decode_image(data, size))
    except UnreadableImage as problem:
        return _Content(digest, None, str(problem))
