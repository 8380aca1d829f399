"""Small pictures for a page, inside of it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from m3el_fast.data.images import FORMATS, read_image_file, refuse_bomb, to_rgb

_QUALITIES = (80, 55, 30, 10)
SIDES = {"mention": 220, "entity": 112}  # pixels of the longer side
BYTES = {"mention": 14_000, "entity": 5_000}  # of a JPEG at most; base64 makes a third more of it


def thumbnail(path: Path | None, kind: str) -> str | None:
    """The ``data:`` URL of a picture of the ``kind`` mention or entity; None where there is no readable one."""
    if path is None:
        return None
    side = SIDES[kind]
    try:
        with Image.open(io.BytesIO(read_image_file(path)), formats=FORMATS) as image:
            refuse_bomb(image)
            image.draft("RGB", (side, side))  # a JPEG is decoded at a fraction of its size
            small = to_rgb(image)
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
    except Exception:  # unreadable, and PIL's plugins meet broken files with almost any exception
        return None
    for quality in _QUALITIES:  # with the last one also noise is small enough
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= BYTES[kind]:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
