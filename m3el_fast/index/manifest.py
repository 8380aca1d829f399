"""``manifest.json``: which files make up an index, and what is in them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from m3el_fast.encode import Precision
from m3el_fast.errors import InputError
from m3el_fast.files import replace_file
from m3el_fast.index.layout import Layout
from m3el_fast.index.shards import file_digest, sync_folder

FORMAT = 1
MANIFEST = "manifest.json"


class File(BaseModel):
    """A file of the index; never changed once a manifest names it. ``checksum`` is BLAKE2b-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z0-9-]+\.safetensors$")
    bytes: int
    checksum: str

    @classmethod
    def of(cls, path: Path) -> File:
        return cls(name=path.name, bytes=path.stat().st_size, checksum=file_digest(path))


class Segment(BaseModel):
    """The entities of one build or one ``add``: ``rows`` entities, and the ``visual_rows`` images they brought."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    items: File
    visual: File
    rows: int
    visual_rows: int


class Removal(BaseModel):
    """The entities of one ``remove``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: File
    rows: int


class Manifest(BaseModel):
    """One version of an index.

    Attributes:
        format: of the files.
        version: 1 when built, one more after each ``add`` and ``remove``.
        fingerprint: of the model that it was encoded with; model: its type.
        precision: of the towers' matrix products; entities that are added are encoded alike.
        layout: what is stored of each entity and image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    version: int
    fingerprint: str
    model: str
    precision: Precision
    layout: Layout
    segments: list[Segment]
    removals: list[Removal] = []

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def visual_rows(self) -> int:
        return sum(segment.visual_rows for segment in self.segments)

    @property
    def removed(self) -> int:
        return sum(removal.rows for removal in self.removals)

    @property
    def files(self) -> list[File]:
        segments = [file for segment in self.segments for file in (segment.items, segment.visual)]
        return segments + [removal.file for removal in self.removals]

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest at once, after all before it is on the disk."""
        sync_folder(folder)
        with replace_file(folder / MANIFEST) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(_text(self.model_dump(mode="json")))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The folder's manifest.

        Raises:
            InputError: the folder is no index, its manifest is damaged, or of another format.
        """
        path = folder / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text)
        except FileNotFoundError:
            raise InputError(folder, f"an entity index, a folder with {MANIFEST}", "none") from None
        except OSError as error:
            raise InputError(path, "a readable file", error.strerror) from None
        except ValueError as error:  # of JSON and of UTF-8
            raise _damaged(path, error) from None
        if not isinstance(content, dict) or "format" not in content:
            raise InputError(path, "the manifest of an entity index", "something else")
        if content["format"] != FORMAT:
            hint = "Build the index again with this version of m3el_fast"
            raise InputError(path, f"an index of format {FORMAT}", f"format {content['format']}", hint)
        content.pop("checksum", None)
        if _text(content) != text:  # byte for byte, so that no flipped bit is missed
            raise _damaged(path, "another checksum")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise _damaged(path, " ".join(str(error).split())) from None


def _text(content: dict[str, Any]) -> str:
    body = json.dumps(content, sort_keys=True)
    checksum = hashlib.blake2b(body.encode(), digest_size=32).hexdigest()
    return json.dumps(content | {"checksum": checksum}, indent=1) + "\n"


def _damaged(path: Path, got: object) -> InputError:
    return InputError(path, "an undamaged manifest", got, "Restore the index from a copy, or build it again")
