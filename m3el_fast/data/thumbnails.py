"""Small pictures for people to look at, of images that strangers made."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from m3el_fast.data.images import FORMATS, UnreadableImage, read_image_file, refuse_bomb, to_rgb

_QUALITIES = (85, 70, 50, 30, 10)


def first_thumbnail(paths: Sequence[Path], side: int, limit: int) -> bytes:
    """:func:`thumbnail` of the first of several images that can be read, the one that the model sees.

    Raises:
        UnreadableImage: there is none, or none that can be read.
    """
    problem = UnreadableImage("no image")
    for path in paths:
        try:
            return thumbnail(path, side, limit)
        except UnreadableImage as error:
            problem = error
    raise problem


def thumbnail(path: Path, side: int, limit: int) -> bytes:
    """The picture of an image file as a JPEG file, without what else the file holds (comments, places, profiles).

    Args:
        side: pixels of the longer side at most.
        limit: bytes; a picture that has more is made coarser, down to a quality of 10. That is enough for any picture,
            noise included, with a byte for 3 of ``side`` x ``side`` pixels.

    Raises:
        UnreadableImage: there is no such file, or it is no image that can be read.
    """
    data = read_image_file(path)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            refuse_bomb(image)
            image.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded at a fraction of its size
            small = to_rgb(image)
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in _QUALITIES:
            out = io.BytesIO()
            small.save(out, "JPEG", quality=quality, optimize=True, comment=b"")  # else that of the file is copied
            if out.tell() <= limit:
                break
    except UnreadableImage:
        raise
    except Exception as error:  # PIL's plugins meet broken files with almost any exception
        raise UnreadableImage(f"{type(error).__name__}: {error}") from None
    return out.getvalue()
