"""Small pictures for a page, inside of it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from m3el_fast.data.images import UnreadableImage
from m3el_fast.data.thumbnails import first_thumbnail

SIDES = {"mention": 220, "entity": 112}  # pixels of the longer side, about 1.5 for one of the page
BYTES = {"mention": 14_000, "entity": 5_000}  # of a JPEG at most; base64 makes a third more of it


def picture(paths: Sequence[Path], kind: str) -> str | None:
    """The ``data:`` URL of the first of the images that can be read, the one that the model saw; None = there is none.

    Args:
        kind: ``mention`` or ``entity``.
    """
    try:
        data = first_thumbnail(paths, SIDES[kind], BYTES[kind])
    except UnreadableImage:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
