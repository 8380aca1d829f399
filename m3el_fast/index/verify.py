"""Comparing an index's files with the checksums in its manifest."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from m3el_fast.errors import InputError
from m3el_fast.index.manifest import Manifest
from m3el_fast.index.shards import file_digest


def verify(path: Path, progress: bool = True) -> None:
    """Read every file of the newest version of an index.

    Raises:
        InputError: naming each file that is missing or in which a bit is not as it was written.
    """
    manifest = Manifest.read(path)
    damaged = []
    total = sum(file.bytes for file in manifest.files)
    with tqdm(total=total, desc="verifying", unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
        for file in manifest.files:
            if not (path / file.name).is_file():
                damaged.append(f"{file.name} is missing")
            elif file_digest(path / file.name) != file.checksum:
                damaged.append(f"{file.name} is damaged")
            bar.update(file.bytes)
    if damaged:
        hint = "Restore the index from a copy, or build it again"
        raise InputError(path, f"{len(manifest.files)} files as they were written", "; ".join(damaged), hint)
