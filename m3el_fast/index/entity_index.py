"""The entity side of a KB on the disk: built once, opened at once, changed without being built again."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Self

from m3el_fast.encode import Precision, Source
from m3el_fast.errors import InputError
from m3el_fast.index.build import build_index
from m3el_fast.index.layout import StoredType
from m3el_fast.index.manifest import Manifest
from m3el_fast.index.store import IndexVersion
from m3el_fast.index.update import add_entities, remove_entities
from m3el_fast.index.verify import verify
from m3el_fast.models import MELModel

Folder = tempfile.TemporaryDirectory[str]


class EntityIndex(IndexVersion):
    """All that scoring needs of the entities of a KB (spec section 5.1), visual rows once per distinct image (spec
    section 5.6), memory-mapped.

    Made by :meth:`build` or :meth:`open`. An object is one version of the index: :meth:`add` and :meth:`remove` return
    the next one and leave this one as it is, also when another process calls them. Several threads may read.
    """

    def __init__(self, path: Path, manifest: Manifest, folder: Folder | None = None) -> None:
        super().__init__(path, manifest)
        self._folder = folder  # removed with the last version of a temporary index

    @classmethod
    def build(
        cls,
        model: MELModel,
        source: Source,
        out: str | Path | None = None,
        *,
        ids: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        dtype: StoredType = "bf16",
        precision: Precision = "fp32",
        progress: bool = True,
    ) -> Self:
        """Encode every entity of ``source``. Row i of the index is item i.

        Memory is bounded by a batch, beside the entities' ids, names and keys. A build that was killed goes on when it
        is called again with the same arguments; until it has ended, ``out`` is not there.

        Args:
            out: a new folder; None = a temporary one, removed with the index.
            ids: any strings, each once (default: "0", "1", ...); names: for answers (default: the ids).
            dtype: of what is compared token by token; all else is fp32.
            precision: of the towers' matrix products, as in :class:`KBEncoder`; bf16 moves features by about 0.3% of
                their norm.

        Raises:
            InputError: no entity, an id twice, a feature that is not finite (naming entity and tensor), ``out`` is not
                new, another build into it is at work, too little disk.
        """
        ids, names = _named(source, ids, names)
        folder = None
        if out is None:
            folder = tempfile.TemporaryDirectory(prefix="m3el-index-")
            out = Path(folder.name) / "index"
        build_index(model, source, Path(out), ids, names, dtype, precision, progress)
        return cls(Path(out), Manifest.read(Path(out)), folder)

    @classmethod
    def open(cls, path: str | Path, model: MELModel | None = None) -> Self:
        """The newest version of the index in a folder. Takes well under a second at any size, but for ``model``'s
        weights, which are read.

        Args:
            model: that it must have been built with; None = any.

        Raises:
            InputError: no index, another format, another model's, or a file that is missing or truncated.
        """
        index = cls(Path(path), Manifest.read(Path(path)))
        if model is not None:
            index.check(model)
        return index

    def add(
        self,
        model: MELModel,
        source: Source,
        *,
        ids: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        progress: bool = True,
    ) -> Self:
        """Add every entity of ``source`` to the newest version in the folder; returns the version with them.

        Images that the index has are not stored again, and entities that it has under another id are copied.

        Raises:
            InputError: as :meth:`build`; an id is in the index, it was built with another model, or another process is
                changing it.
        """
        ids, names = _named(source, ids, names)
        add_entities(self.path, model, source, ids, names, progress)
        return type(self)(self.path, Manifest.read(self.path), self._folder)

    def remove(self, ids: Sequence[str]) -> Self:
        """Remove entities from the newest version in the folder; returns the version without them.

        Their rows stay, dead. An id may be added again later.

        Raises:
            InputError: no id, an id is not in the index, or another process is changing it.
        """
        remove_entities(self.path, ids)
        return type(self)(self.path, Manifest.read(self.path), self._folder)

    def verify(self, progress: bool = True) -> None:
        """Compare all files with their checksums, as :func:`verify`."""
        verify(self.path, progress)


def _named(
    source: Source, ids: Sequence[str] | None, names: Sequence[str] | None
) -> tuple[Sequence[str], Sequence[str]]:
    if len(source) == 0:
        raise InputError("source", "at least one entity", 0)
    ids = [str(row) for row in range(len(source))] if ids is None else ids
    if len(ids) != len(source):
        raise InputError("ids", f"one for each of {len(source)} entities", len(ids))
    return ids, ids if names is None else names
