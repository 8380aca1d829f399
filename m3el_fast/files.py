"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3el_fast.errors import InputError


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``target`` when the block ends without an error.

    Who looks at ``target`` finds the old one or the new one, and a kill leaves one of them, where the file system can
    exchange two folders (ext4, XFS, Btrfs, tmpfs and others of Linux). Elsewhere, such as on NFS, a kill between two
    renames leaves both in a hidden folder beside ``target``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True) as place:
        new, old = Path(place, "new"), Path(place, "old")
        new.mkdir()
        yield new
        if not os.path.lexists(target):
            os.replace(new, target)
        elif not _exchange(new, target):
            try:
                os.replace(target, old)
                os.replace(new, target)
            except BaseException:
                if not os.path.lexists(target):
                    os.replace(old, target)
                raise


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places at once; False = they did not, for whatever reason."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:  # glibc has it since 2.28
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def require_file_target(target: Path) -> None:
    """Refuse, before the work is done, a target that :func:`replace_file` could not write.

    Raises:
        InputError: it is a folder, a device or a pipe, lies below a file, or in a folder that cannot be written.
    """
    try:
        if target.exists() and not target.is_file():
            raise InputError(target, "a file to write", "a folder" if target.is_dir() else "a device or a pipe")
        place = next(folder for folder in target.absolute().parents if folder.exists())
        if not place.is_dir():
            raise InputError(target, "a file in a folder", f"{place}, which is a file")
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", dir=place):
            pass
    except OSError as error:
        raise InputError(target, "a file that can be written", error.strerror) from None


@contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that takes its place when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
