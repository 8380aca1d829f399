"""A data set's folder, which appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
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
        InputError: something is at ``folder`` already, it lies below a file, or not all of it can be written there.
    """
    if os.path.lexists(folder):
        raise InputError(folder, f"a new folder for {content}", "an existing one", "Remove it, or name another")
    place = next(above for above in folder.absolute().parents if above.exists())
    if not place.is_dir():
        raise InputError(folder, "a new folder in a folder", f"{place}, which is a file")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            draft = beside / "draft"
            draft.mkdir()  # mkdtemp's own is for its owner's eyes alone
            yield draft
            draft.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise InputError(folder, f"a place where {content} can be written", error.strerror or error) from None
