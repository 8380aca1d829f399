"""A user's own entities and mentions as they are given: JSON Lines, one object a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from m3el_fast.data.layout import Split
from m3el_fast.data.records import ABSENT, Record, read_json_lines, shown

ENTITY_FIELDS = ("id", "name", "text", "image", "images")
MENTION_FIELDS = ("id", "mention", "sentence", "image", "answer", "split")
NIL = "nil"


@dataclass(frozen=True, slots=True)
class OwnEntity:
    """An entity; ``images`` are paths below the folder of entity images, with ``/``."""

    id: str
    name: str
    text: str
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OwnMention:
    """A mention; ``where`` it was given; ``answer`` None = no entity; ``split`` None = not said."""

    where: str
    id: str
    name: str
    sentence: str
    image: Path | None
    answer: str | None
    split: Split | None


def read_entities(path: Path, lines: dict[str, int], progress: bool) -> Iterator[OwnEntity]:
    """The entities of a file, one at a time.

    Args:
        lines: is filled with the line of each id.

    Raises:
        InputError: the file cannot be read, or a line is no entity, or its id was there before.
    """
    for number, value in read_json_lines(path, "a JSON Lines file of entities", progress):
        record = Record(path, "line", number, value)
        _refuse_unknown(record, ENTITY_FIELDS)
        entity = OwnEntity(_id(record, "id"), _name(record, "name"), record.text("text"), _images(record))
        if entity.id.lower() == NIL:
            raise record.error(f'an "id" other than "{NIL}", which is no entity', shown(entity.id))
        if entity.id in lines:
            raise record.error("each id once", f"{entity.id} again (first in line {lines[entity.id]})")
        lines[entity.id] = number
        yield entity


def read_mentions(path: Path, images: Path, split: Split | None, progress: bool) -> Iterator[OwnMention]:
    """The mentions of a file, one at a time.

    Args:
        images: the folder below which the images are.
        split: of all mentions; None = the one that each names, if any.

    Raises:
        InputError: the file cannot be read, or a line is no mention.
    """
    for number, value in read_json_lines(path, "a JSON Lines file of mentions", progress):
        record = Record(path, "line", number, value)
        _refuse_unknown(record, MENTION_FIELDS)
        image = _image(record, record.text("image")) if record.has("image") else None
        yield OwnMention(
            where=record.where,
            id=record.text_or_integer("id") if record.has("id") else str(number),
            name=_name(record, "mention"),
            sentence=record.text("sentence"),
            image=None if image is None else images / image,
            answer=_answer(record),
            split=_split(record, split),
        )


def _refuse_unknown(record: Record, fields: tuple[str, ...]) -> None:
    if unknown := [key for key in record.values if key not in fields]:
        raise record.error(f"no fields but {', '.join(fields)}", ", ".join(map(shown, unknown)))


def _id(record: Record, key: str) -> str:
    value = record.text_or_integer(key)
    if not value or value != value.strip():
        raise record.error(f'"{key}" to be an id without white space around it', shown(value))
    return value


def _name(record: Record, key: str) -> str:
    value = record.text(key)
    if not value.strip():
        raise record.error(f'a "{key}" that is not empty', shown(value))
    return value


def _answer(record: Record) -> str | None:
    value = record.get("answer")
    if value is None:
        return None
    if value is ABSENT:
        raise record.error('"answer" to be the id of an entity, or null', shown(value))
    answer = _id(record, "answer")
    return None if answer.lower() == NIL else answer


def _split(record: Record, of_file: Split | None) -> Split | None:
    allowed = get_args(Split) if of_file is None else (of_file,)
    named: Split | None = record.values.get("split")
    if named is not None and named not in allowed:
        raise record.error(f'"split" to be {" or ".join(allowed)}', shown(named))
    return of_file or named


def _images(record: Record) -> tuple[str, ...]:
    if record.has("image") and record.has("images"):
        raise record.error('"image" or "images"', "both")
    names = record.texts("images") if record.has("images") else [record.text("image")] if record.has("image") else []
    return tuple(image for name in names if (image := _image(record, name)))


def _image(record: Record, name: str) -> str | None:
    """A path below a folder, None where the name is empty."""
    if not name:
        return None
    path = Path(name)
    if not path.parts or "\0" in name:
        raise record.error("the name of an image file", shown(name))
    if path.anchor or ".." in path.parts:
        raise record.error("a path below the folder of images, from there", shown(name))
    return path.as_posix()
