"""The files of an image cache: pixels, and an index of which file has which content, which content has which row.

A row is in use once the index says so, and the index is committed after the pixels are on disk: a killed build leaves
finished rows, and the next one goes on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from io import BufferedRandom
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from m3el_fast.data.images import MISSING, UnreadableImage, decode_image, read_image_file
from m3el_fast.errors import InputError

_CHUNK = 256  # images between two commits
_ASKED = 500  # files in one query; some builds of SQLite take no more than 999 values
_SCHEMA = """
CREATE TABLE files (path BLOB PRIMARY KEY, bytes INTEGER, mtime_ns INTEGER, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE contents (digest BLOB PRIMARY KEY, row INTEGER UNIQUE, problem TEXT) WITHOUT ROWID;
"""

Outcome = int | str  # a row of pixels, or the problem that left none


class File(NamedTuple):
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


class _Contents:
    """The outcomes of contents; for the reading threads, which run while nothing is written."""

    def __init__(self, index: sqlite3.Connection) -> None:
        self._index, self._turn = index, Lock()

    def get(self, digest: bytes) -> Outcome | None:
        """None = a content that the index does not have."""
        query = "SELECT coalesce(row, problem) FROM contents WHERE digest = ?"
        with self._turn:
            found: list[tuple[Outcome]] = self._index.execute(query, [digest]).fetchall()
        return found[0][0] if found else None


class Store:
    """The files of one cache folder for one image size."""

    def __init__(self, home: Path, size: int) -> None:
        self.home, self.size, self.row_bytes = home, size, size * size * 3
        self.index_path, self.pixels_path = home / "index.sqlite", home / "pixels"

    def known(self, files: Sequence[File]) -> dict[Path, Outcome]:
        """The outcomes of those files that the index has, unchanged since."""
        if not self.index_path.exists():
            return {}
        query = "SELECT path, bytes, mtime_ns, coalesce(row, problem) FROM files JOIN contents USING (digest)"
        outcomes: dict[Path, Outcome] = {}
        with self._index() as index:
            for start in range(0, len(files), _ASKED):
                asked = files[start : start + _ASKED]
                places = ", ".join("?" * len(asked))
                found = index.execute(f"{query} WHERE path IN ({places})", [file.key for file in asked])
                stored = {key: entry for key, *entry in found}
                for file in asked:
                    size, mtime_ns, outcome = stored.get(file.key, (None, None, None))
                    if (size, mtime_ns) == (file.size, file.mtime_ns):
                        outcomes[file.path] = outcome
        return outcomes

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
            with tempfile.TemporaryFile(dir=self.home):
                pass
        except (FileExistsError, NotADirectoryError):
            raise InputError(self.home, "a folder for the image cache", "a file in its place") from None
        except OSError as error:
            got, hint = error.strerror or error, "The environment variable M3EL_CACHE puts it elsewhere"
            raise InputError(self.home, "a folder for the image cache that can be written", got, hint) from None
        with FileLock(self.home / "lock"):
            if not self.index_path.exists():
                fresh = self.home / "index.sqlite.new"
                fresh.unlink(missing_ok=True)
                with closing(sqlite3.connect(fresh)) as index:
                    index.executescript(_SCHEMA)
                self.pixels_path.touch()
                os.replace(fresh, self.index_path)
            yield

    def decode(self, files: Sequence[File], strict: bool, workers: int, progress: bool) -> dict[Path, Outcome]:
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
            contents = _Contents(index)
            read = partial(_read, size=self.size, is_known=lambda digest: contents.get(digest) is not None)
            out.seek(self._row_count(index) * self.row_bytes)
            for start in range(0, len(files), _CHUNK):
                chunk = files[start : start + _CHUNK]
                done = self._append(index, out, contents, list(zip(chunk, pool.map(read, chunk), strict=True)))
                if strict:
                    refuse(done)
                outcomes |= done
                bar.update(len(chunk))
        return outcomes

    def _append(
        self,
        index: sqlite3.Connection,
        out: BufferedRandom,
        contents: _Contents,
        results: Sequence[tuple[File, _Content]],
    ) -> dict[Path, Outcome]:
        outcomes: dict[Path, Outcome] = {}
        fresh: dict[bytes, Outcome] = {}
        for file, content in results:
            if content.digest is None:
                outcomes[file.path] = content.problem
                continue
            outcome = contents.get(content.digest)
            if outcome is None:
                outcome = fresh.get(content.digest)  # of a twin that came earlier in this chunk
            if outcome is None:
                outcome = content.problem
                if content.pixels is not None:
                    outcome = out.tell() // self.row_bytes
                    out.write(content.pixels.tobytes())
                fresh[content.digest] = outcome
            outcomes[file.path] = outcome
        out.flush()
        os.fsync(out.fileno())
        with index:
            index.executemany(
                "INSERT INTO contents VALUES (?, ?, ?)",
                [(digest, None, o) if isinstance(o, str) else (digest, o, None) for digest, o in fresh.items()],
            )
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
            # its threads take turns: _Contents
            with closing(sqlite3.connect(uri, uri=True, timeout=60, check_same_thread=False)) as index:
                yield index
        except sqlite3.DatabaseError as error:
            raise InputError(self.index_path, "the index of an image cache", error, self._remove_hint()) from None

    def _remove_hint(self) -> str:
        return f"Remove the folder {self.home}; the next run makes it anew"


def look(paths: Sequence[Path], home: Path) -> tuple[list[File], dict[Path, Outcome]]:
    """The distinct files that are there, and the problem of each that cannot be looked at."""
    files: list[File] = []
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
            files.append(File(path, key, found.st_size, found.st_mtime_ns))
    return files, problems


def refuse(outcomes: dict[Path, Outcome]) -> None:
    for path, outcome in outcomes.items():
        if isinstance(outcome, str):
            raise InputError(path, "a readable image", outcome, "Without strict images it counts as no image")


def _read(file: File, size: int, is_known: Callable[[bytes], bool]) -> _Content:
    """Runs in a thread; leaves out the pixels of contents that are known."""
    try:
        data = read_image_file(file.path)
    except UnreadableImage as problem:
        return _Content(None, None, str(problem))
    digest = hashlib.sha256(data).digest()
    if is_known(digest):
        return _Content(digest)
    try:
        return _Content(digest, decode_image(data, size))
    except UnreadableImage as problem:
        return _Content(digest, None, str(problem))
