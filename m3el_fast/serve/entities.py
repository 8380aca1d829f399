"""What is known of an entity: from the index its name, from the KB its texts and its picture."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import quote

from m3el_fast.data.images import UnreadableImage
from m3el_fast.data.layout import Entity, KnowledgeBase
from m3el_fast.data.thumbnails import first_thumbnail
from m3el_fast.index import EntityIndex
from m3el_fast.serve.errors import Refused, shown

_PICTURES = 1024  # small ones, that are kept
_SIDE, _BYTES = 320, 48_000  # of each at most: pixels of its longer side, bytes


class Entities:
    """Entities as clients see them. A picture is one of an entity's record in the KB, whatever a client asks: the
    first that can be read, which the model sees.

    Args:
        kb: None = texts and pictures are unknown.
    """

    def __init__(self, kb: KnowledgeBase | None) -> None:
        self.there = kb is not None
        self._records: dict[str, Entity] = {} if kb is None else {one.qid: one for one in kb.entities}
        self._thumbnail = lru_cache(_PICTURES)(first_thumbnail)

    def describe(self, index: EntityIndex, identity: str) -> dict[str, Any]:
        """As :class:`EntityOut`.

        Raises:
            Refused: there is no such entity (404).
        """
        row = index.find([identity])
        if row[0] < 0:
            raise Refused(404, "id", "the id of an entity", shown(identity))
        record = self._records.get(identity)
        return {
            "id": identity,
            "name": index.names.gather(row)[0],
            "attr": None if record is None else record.attr,
            "desc": None if record is None else record.desc,
            "image": f"/entities/{quote(identity, safe='')}/image" if record is not None and record.images else None,
        }

    def picture(self, identity: str) -> bytes:
        """A small JPEG file.

        Raises:
            Refused: there is none, or it cannot be read (404).
        """
        record = self._records.get(identity)
        try:
            return self._thumbnail(() if record is None else record.images, _SIDE, _BYTES)
        except UnreadableImage as problem:
            raise Refused(404, "id", "an entity with a picture", f"{shown(identity)}: {problem}") from None
