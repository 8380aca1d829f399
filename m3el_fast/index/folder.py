"""Locks, space and the folder of a build: what keeps an index whole whatever happens."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from m3el_fast.errors import InputError
from m3el_fast.index.manifest import MANIFEST, Manifest
from m3el_fast.index.shards import sync_folder

LOCK = "lock"
STATE = "build.json"
CONTEXT = "context.safetensors"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Be the only one who writes into ``folder``, or refuse; the lock ends with the process.

    Raises:
        InputError: another process, or another thread, is writing.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        hint = "Wait for the other one to end, or end it"
        raise InputError(folder, "no other writer", "one that is at work", hint) from None
    except PermissionError as error:
        raise InputError(folder, "a folder to write in", error.strerror) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A disk that is full, or turns full, as an :class:`InputError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(folder, "space on the disk", error.strerror, "Free some and run it again") from None


def require_space(folder: Path, needed: int) -> None:
    """Refuse before any work. Raises InputError."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        expected, hint = f"{needed / 1e9:.3f} GB free", "Free some, or put the index on another disk"
        raise InputError(folder, expected, f"{free / 1e9:.3f} GB", hint)


def require_new(out: Path) -> None:
    """Refuse a place where something is. Raises InputError."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        got = "a file" if not out.is_dir() else "an index" if (out / MANIFEST).exists() else "a folder of other files"
        raise InputError(out, "a new folder", got, "Remove it first, or give another one")


@contextmanager
def build_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out``, locked, that takes its place when the block ends without an error.

    What a block that did not end has left there, a later one of the same ``out`` finds again.

    Raises:
        InputError: ``out`` is not new, another build into it is at work, or the disk is full.
    """
    out = out.absolute()
    require_new(out)
    folder = out.parent / f".{out.name}.building"
    with disk_errors(out):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(out, "a new folder in a folder", "a place below a file") from None
        except PermissionError as error:
            raise InputError(out, "a folder to write in", error.strerror) from None
        with writer_lock(folder):
            try:
                require_new(out)  # another build may have ended since
                yield folder
                os.rename(folder, out)
                sync_folder(out.parent)
                clear(out, {file.name for file in Manifest.read(out).files})
            finally:
                if folder.exists() and not (folder / STATE).exists():
                    shutil.rmtree(folder)


def clear(folder: Path, keep: Collection[str]) -> None:
    """Remove what a build needs only while it lasts, and what writers that were killed have left: all but ``keep``."""
    for path in folder.iterdir():
        unfinished = path.name.startswith(".")  # of replace_file
        if unfinished or path.name == STATE or (path.suffix == ".safetensors" and path.name not in keep):
            path.unlink()
