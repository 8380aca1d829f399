"""The index that is in use, and newer ones that take its place."""

from __future__ import annotations

import logging
import os
from datetime import datetime, timezone
from pathlib import Path

from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex
from m3el_fast.index.manifest import Manifest
from m3el_fast.models import MELModel
from m3el_fast.serve.linking import MemoryLinker, Query

_LOG = logging.getLogger("m3el_fast.serve")

State = tuple[Path, tuple[tuple[str, int, int], ...]]


class IndexInUse:
    """A linker to the newest version of the index at ``path``: in that folder, or in another one that ``path``, a
    symbolic link, comes to point to.

    Attributes:
        linker: in use; it is replaced and never changed, so whoever holds it goes on with it.
        opened: when it was taken into use.
        problem: why a newer one could not be, None = there is none.

    Raises:
        InputError: there is no index, or it is another model's.
    """

    def __init__(self, model: MELModel, path: Path) -> None:
        self.model, self.path = model, path
        self.problem: str | None = None
        self._seen = self._state()
        self.linker, self.opened = self._open(self._seen[0])

    def look(self) -> None:
        """Take a newer index into use, warmed up; one that cannot be used is logged and left aside until the folder
        changes again. Takes as long as opening it: not for the event loop."""
        try:
            state = self._state()
            if state == self._seen:
                return
            self._seen = state
            manifest = Manifest.read(state[0])
            if (state[0], manifest) != (self.linker.index.path, self.linker.index.manifest):
                self.linker, self.opened = self._open(state[0])
                index = self.linker.index
                _LOG.info("index %s, version %d: %d entities", index.path, index.manifest.version, len(index))
            self.problem = None
        except Exception as problem:  # whatever it is, the index in use goes on
            # for clients, who need not know the server's folders
            self.problem = f"expected {problem.expected}" if isinstance(problem, InputError) else type(problem).__name__
            _LOG.error(
                "the index stays at version %d: %s",
                self.linker.index.manifest.version,
                problem,
                exc_info=not isinstance(problem, InputError),
            )

    def _open(self, folder: Path) -> tuple[MemoryLinker, datetime]:
        linker = MemoryLinker(self.model, index=EntityIndex.open(folder))
        # reads all of the index and finds the scan's margins
        linker.answer([Query([{"mention": "first", "sentence": "The first one takes longest."}], [None], 1, None)])
        return linker, datetime.now(timezone.utc)

    def _state(self) -> State:
        """The folder and its files; another whenever there may be something new."""
        try:
            folder = self.path.resolve(strict=True)
            with os.scandir(folder) as found:
                return folder, tuple(sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in found))
        except (OSError, RuntimeError):  # gone, or changed meanwhile; the latter: a loop of links
            return self.path, ()
