"""Pictures that clients send, in memory from first to last."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3el_fast.data.images import FORMATS, UnreadableImage, decode_image
from m3el_fast.errors import InputError
from m3el_fast.serve.errors import Refused, shown
from m3el_fast.serve.limits import Limits


def from_base64(text: str, where: str, limits: Limits) -> bytes:
    """The bytes of an image file, given in base64 or as a ``data:`` URL.

    Raises:
        InputError: it is neither, or too large.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InputError(where, "a data URL in base64", shown(head))
    _refuse_bytes(len(text) * 3 // 4 - 2, where, limits)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # the latter: not ASCII
        raise InputError(where, "an image file in base64", f"{shown(text)}: {error}") from None


def decode_picture(data: bytes, where: str, size: int, limits: Limits) -> NDArray[np.uint8]:
    """The pixels [size, size, 3] uint8 of an image file.

    Raises:
        InputError: it is too large, of too many pixels (decided before they are decoded), or no image.
    """
    _refuse_bytes(len(data), where, limits)
    try:
        _refuse_pixels(data, limits.pixels)
        return decode_image(data, size)
    except UnreadableImage as problem:
        raise InputError(where, "a readable image", problem) from None


def _refuse_bytes(count: int, where: str, limits: Limits) -> None:
    if count > limits.image:
        raise Refused(413, where, f"an image file of at most {limits.image:,} bytes", f"{count:,}")


def _refuse_pixels(data: bytes, most: int) -> None:
    """Reads no more than the header; what is no image is left to :func:`decode_image`."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except Exception:  # PIL's plugins meet broken files with almost any exception
        return
    if width * height > most:
        raise UnreadableImage(f"{width} x {height} pixels, more than {most:,}")
