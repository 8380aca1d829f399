"""A data set's folder, which appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3el_fast.errors import InputError


@contextmanager
def new_folder(folder: Path, content: str) -> Iterator[Path]:
    """An empty folder that becomes ``folder`` when the block ends without an error.

    Args:
        content: what it is for, "the sample set".

    Raises:
        InputError: something is at ``folder`` already, it lies below a file, or nothing can be written there.
    """
    if os.path.lexists(folder):
        raise InputError(folder, f"a new folder for {content}", "an existing one", "Remove it, or name another")
    place = next(above for above in folder.absolute().parents if above.exists())
    if not place.is_dir():
        raise InputError(folder, "a new folder in a folder", f"{place}, which is a file")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
    except PermissionError as error:
        raise InputError(folder, "a folder to write in", error.strerror) from None
    try:
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
