"""An index that travels with its checkpoint, in the folder ``index/`` beside the weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from m3el_fast.hub_transfer import INDEX_FOLDER, INDEX_MANIFEST
from m3el_fast.index import EntityIndex
from m3el_fast.index.fingerprint import fingerprint
from m3el_fast.index.folder import disk_errors
from m3el_fast.models import MELModel


def has_index(checkpoint: Path) -> bool:
    return (checkpoint / INDEX_MANIFEST).is_file()


def given_index(model: MELModel, index: EntityIndex | str | Path) -> EntityIndex:
    """The index that is to travel. Raises InputError where it is none, or was built with other weights."""
    if isinstance(index, EntityIndex):
        index.check(model)
        return index
    return EntityIndex.open(index, model)


def kept_index(model: MELModel, checkpoint: Path) -> EntityIndex | None:
    """The index in a checkpoint folder that is to be replaced, where it is one of ``model``'s weights."""
    if not has_index(checkpoint):
        return None
    index = EntityIndex.open(checkpoint / INDEX_FOLDER)
    return index if index.manifest.fingerprint == fingerprint(model) else None


def put_index(index: EntityIndex, folder: Path, place: Callable[[Path, Path], object]) -> None:
    """Make the new ``folder`` the version of the index that ``index`` is: its files by ``place``, the manifest last.

    The writers' lock, and files of other versions, stay behind.
    """
    folder.mkdir()
    with disk_errors(folder):
        for file in index.manifest.files:
            place((index.path / file.name).resolve(), folder / file.name)
        index.manifest.write(folder)


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them: the files of an index never change."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
