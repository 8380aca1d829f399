"""Queries and documents as callers of rerankers give them: a text, a picture or both."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3el_fast.data.images import MISSING, UnreadableImage, decode_image, read_image_file, to_rgb
from m3el_fast.data.layout import Entity, Mention, entity_text, mention_text
from m3el_fast.data.records import valid_text
from m3el_fast.errors import InputError

Picture = Path | Image.Image | bytes
"""An image file, an opened image, or the bytes of an image file."""

_PICTURE = "a path, a PIL image or the bytes of an image file"


@dataclass(frozen=True, eq=False)
class Item:
    """A query or a document: ``where`` it was given, all of the ``text`` that the model reads, and its picture."""

    where: str
    text: str
    image: Picture | None


def parse_query(record: object, where: str) -> Item:
    """A mention as a reranker's query.

    Args:
        record: a string, read as it stands (models are trained on ``MENTION [SEP] SENTENCE``); a PIL image; or a
            mapping of ``text``, the sentence, ``mention``, the name as it stands in it, which makes the text
            ``mention [SEP] text``, and ``image``: a path, a PIL image or the bytes of an image file. Text or image may
            be left out, and so may the mention: the text is then read as it stands.
        where: names the record in errors.

    Raises:
        InputError: it is something else, has another field, has neither text nor image, or names a file that is not
            there.
    """
    return _parse(record, where, "mention", lambda name, text: mention_text(Mention("", name, text, None, None)))


def parse_document(record: object, where: str) -> Item:
    """An entity as a reranker's document.

    Args:
        record: as that of :func:`parse_query`, ``name`` (the entity's) being in the place of ``mention`` and ``text``
            describing the entity: ``NAME [SEP] TEXT``.
        where: names the record in errors.

    Raises:
        InputError: as :func:`parse_query`.
    """
    return _parse(record, where, "name", lambda name, text: entity_text(Entity("", name, text, None, ()), "attr"))


def pixels(item: Item, size: int) -> NDArray[np.uint8]:
    """The pixels [size, size, 3] uint8 of an item's picture, which is there; the same for a file and for it opened.

    Raises:
        InputError: it cannot be read.
    """
    assert item.image is not None
    try:
        if isinstance(item.image, Image.Image):
            return _opened(item.image, size)
        return decode_image(item.image if isinstance(item.image, bytes) else read_image_file(item.image), size)
    except UnreadableImage as problem:
        path = f"{item.image}: " if isinstance(item.image, Path) else ""
        raise InputError(f"{item.where}, field image", "a readable image", f"{path}{problem}") from None


def _opened(image: Image.Image, size: int) -> NDArray[np.uint8]:
    if 0 in image.size:  # PIL makes black ones of them
        raise UnreadableImage(f"{image.width} x {image.height} pixels")
    try:
        return np.asarray(to_rgb(image).resize((size, size), Image.Resampling.LANCZOS))
    except Exception as error:  # it may not have been read yet, and PIL meets broken files with almost any exception
        raise UnreadableImage(f"{type(error).__name__}: {error}") from None


def _parse(record: object, where: str, title: str, join: Callable[[str, str], str]) -> Item:
    if isinstance(record, str):
        return Item(where, valid_text(record), None)
    if isinstance(record, Image.Image):
        return Item(where, "", record)
    if not isinstance(record, Mapping):
        expected = f'a string, a PIL image or a mapping of "text", "{title}" and "image"'
        raise InputError(where, expected, type(record).__name__)
    unknown = set(record) - {"text", title, "image"}
    if unknown:
        raise InputError(where, f'the fields "text", "{title}" and "image"', ", ".join(sorted(map(str, unknown))))
    text, name = (_text(record.get(field), f"{where}, field {field}") for field in ("text", title))
    image = _image(record.get("image"), f"{where}, field image")
    if text is None and image is None:
        raise InputError(where, '"text" or "image"', "neither")
    text = text or ""
    return Item(where, text if name is None else join(" ".join(name.split()), text), image)


def _text(value: object, where: str) -> str | None:
    if not isinstance(value, str | None):
        raise InputError(where, "a string", type(value).__name__)
    return None if value is None else valid_text(value)


def _image(value: object, where: str) -> Picture | None:
    if value is None or isinstance(value, Image.Image | bytes):
        return value
    if not isinstance(value, str | os.PathLike):
        raise InputError(where, _PICTURE, type(value).__name__, "PIL.Image.fromarray makes an image of an array")
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise InputError(where, _PICTURE, repr(path))
    if "://" in path or path.startswith("data:"):
        raise InputError(where, _PICTURE, f"the URL {path[:60]}", "Download it first")
    if not os.path.exists(path):  # said now, before anything is encoded
        raise InputError(where, "a readable image", f"{path[:255]}: {MISSING}")
    return Path(path)
