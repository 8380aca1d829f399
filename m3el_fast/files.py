"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3el_fast.errors import InputError


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.old.", dir=target.parent) as old:
                os.replace(target, Path(old) / target.name)
                try:
                    os.replace(temporary, target)
                except BaseException:
                    os.replace(Path(old) / target.name, target)
                    raise
        else:
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_file_target(target: Path) -> None:
    """Refuse, before the work is done, a target that :func:`replace_file` could not write.

    Raises:
        InputError: it is a folder, or lies below a file.
    """
    if target.is_dir():
        raise InputError(target, "a file to write", "a folder")
    place = next(folder for folder in target.absolute().parents if folder.exists())
    if not place.is_dir():
        raise InputError(target, "a file in a folder", f"{place}, which is a file")


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
