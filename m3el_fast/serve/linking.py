"""Linking of mentions whose pictures are in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3el_fast.data.cache import ImageCache
from m3el_fast.link import Linker, Links
from m3el_fast.link_input import Request


@dataclass(frozen=True, eq=False)
class Query:
    """A request that was read and checked.

    Attributes:
        mentions: as :meth:`Linker.link` takes them, without an image.
        pictures: of each mention, pixels [size, size, 3] uint8 or None.
        k, candidates: as there; the latter a number or None.
    """

    mentions: list[dict[str, Any]]
    pictures: list[NDArray[np.uint8] | None]
    k: int
    candidates: int | None

    @property
    def options(self) -> tuple[int, int | None]:
        """What must be equal for queries to be linked in one call."""
        return self.k, self.candidates


class MemoryLinker(Linker):
    """A :class:`Linker` of queries. Not to be called from several threads."""

    _pictures: dict[Path, NDArray[np.uint8]]

    def answer(self, queries: list[Query]) -> list[list[Links]]:
        """The links of each of several queries with the same options, linked in one call.

        Raises:
            InputError: as :meth:`Linker.link`, of whichever query.
        """
        self._pictures = {}
        mentions: list[dict[str, Any]] = []
        for query in queries:
            for mention, picture in zip(query.mentions, query.pictures, strict=True):
                if picture is not None:
                    name = Path(str(len(mentions)))  # a name among these pictures, of no file
                    self._pictures[name] = picture
                    mention = mention | {"image": name}
                mentions.append(mention)
        links = iter(self.link(mentions, queries[0].k, queries[0].candidates))
        return [[next(links) for _ in query.mentions] for query in queries]

    def _images(self, requests: list[Request]) -> ImageCache:
        """The pictures in memory, in the place of files."""
        size = self.model.encoder.image_size
        pixels = np.stack(list(self._pictures.values())) if self._pictures else np.empty((0, size, size, 3), np.uint8)
        return ImageCache(pixels, {name: row for row, name in enumerate(self._pictures)})
