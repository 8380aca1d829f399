"""Reader of the MIMIC data set layout (spec section 7); every defect is an :class:`InputError` with file and record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from m3el_fast.data.records import ABSENT, Record, shown, valid_text
from m3el_fast.errors import InputError

EntityText = Literal["attr", "desc"]
Split = Literal["train", "dev", "test"]


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity of the KB.

    Attributes:
        qid: its id in answers.
        name: URL-unquoted, white space collapsed, never empty.
        attr: the short description, may be empty.
        desc: the long description, None where the data set has none.
        images: under ``kb_image/``, unchecked for existence; evaluation uses the first, training draws one.
    """

    qid: str
    name: str
    attr: str
    desc: str | None
    images: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Mention:
    """One mention.

    Attributes:
        id: as in the file.
        name: the mention string, URL-unquoted, white space collapsed.
        sentence: its context.
        image: under ``mention_image/`` or ``mention_images/``, unchecked for existence; None = no image.
        answer: qid of the gold entity (which may be missing from the KB); None = ``nil``.
    """

    id: str
    name: str
    sentence: str
    image: Path | None
    answer: str | None


@dataclass(frozen=True)
class KnowledgeBase:
    """The entities of a data set, in file order.

    Attributes:
        root: the data set's folder.
        entities: never empty, qids unique.
        row: position in ``entities`` of each qid.
    """

    root: Path
    entities: list[Entity]
    row: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "row", {entity.qid: row for row, entity in enumerate(self.entities)})

    def __len__(self) -> int:
        return len(self.entities)


def entity_text(entity: Entity, context: EntityText) -> str:
    """The text that describes an entity (spec section 1).

    Raises:
        ValueError: ``context`` is "desc" and the entity has none.
    """
    described = entity.attr if context == "attr" else entity.desc
    if described is None:
        raise ValueError(f"entity {entity.qid} has no desc: read the KB with read_kb(dir, 'desc')")
    return f"{entity.name} [SEP] {described}"


def mention_text(mention: Mention) -> str:
    """The text of a mention in its context (spec section 1)."""
    return f"{mention.name} [SEP] {mention.sentence}"


def read_kb(dir: Path, entity_text: EntityText) -> KnowledgeBase:
    """Read ``kb_entity.json``, and check ``qid2id.json`` against it where that file is there.

    Args:
        dir: folder of the data set.
        entity_text: which description every entity must have.

    Raises:
        InputError: missing or invalid file, a field missing or of the wrong type, no entity at all, an entity without
            name or qid, a qid or id given twice, an image outside ``kb_image/``, ids that contradict ``qid2id.json``.
    """
    _require_folder(dir)
    path = dir / "kb_entity.json"
    images = _ImageFolder(dir / "kb_image")
    ids: dict[str, int] = {}
    owner: dict[int, int] = {}
    entities: list[Entity] = []
    for record in _records(path):
        qid, number = record.text("qid"), record.integer("id")
        if not qid:
            raise record.error('a "qid" that is not empty', '""')
        if qid in ids:
            first = next(i for i, known in enumerate(ids, start=1) if known == qid)
            raise record.error("each qid once", f"{qid} again (first in record {first})")
        if number in owner:
            raise record.error("each id once", f"{number} again (first in record {owner[number]})")
        ids[qid], owner[number] = number, record.number
        entities.append(_entity(record, qid, images, entity_text))
    if not entities:
        raise InputError(path, "at least one entity", "an empty list")
    _check_ids(dir / "qid2id.json", ids)
    return KnowledgeBase(dir, entities)


def read_mentions(dir: Path, split: Split) -> list[Mention]:
    """Read ``<NAME>_<split>.json``, whatever the data set's name is.

    Raises:
        InputError: no such file or several, invalid JSON, a field missing or of the wrong type, an image outside its
            folder.
    """
    _require_folder(dir)
    found = sorted(path for path in dir.glob(f"*_{split}.json") if not path.name.startswith("."))
    if len(found) != 1:
        raise InputError(dir, f"one file *_{split}.json", ", ".join(path.name for path in found) or "none")
    folder = dir / "mention_image"
    images = _ImageFolder(folder if folder.exists() else dir / "mention_images")
    return [_mention(record, images) for record in _records(found[0])]


class _ImageFolder:
    """Turns the names in a data set into paths that stay inside one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.links: frozenset[str] = frozenset()
        if folder.exists():
            if not folder.is_dir():
                raise InputError(folder, "a folder of images", "a file")
            # One scan instead of a realpath for each of a hundred thousand names.
            with os.scandir(folder) as found:
                self.links = frozenset(entry.name for entry in found if entry.is_symlink())

    def path(self, name: str, record: Record) -> Path:
        if not name or "\0" in name:
            raise record.error("the name of an image file", shown(name))
        path = self.folder / name
        plain = "/" not in name and "\\" not in name and name not in (".", "..") and name not in self.links
        if not plain and not self._contains(path):
            raise record.error(f"an image inside {self.folder.name}/", f"{shown(name)}, which leads out of it")
        return path

    @cached_property
    def _root(self) -> Path:
        return self.folder.resolve()

    def _contains(self, path: Path) -> bool:
        try:
            return self._root in path.resolve().parents
        except (OSError, RuntimeError):  # a loop of symbolic links
            return False


def _entity(record: Record, qid: str, images: _ImageFolder, context: EntityText) -> Entity:
    name = _name(record.text("entity_name"))
    if not name:
        raise record.error('an "entity_name" that is not empty', shown(record.values["entity_name"]))
    attr = record.text("attr")
    desc = record.text("desc") if record.has("desc") else None
    if desc is None and context == "desc":
        got = shown(record.get("desc"))
        raise record.error('"desc" to be a string', got, 'Set entity_text to "attr" where there are no descriptions')
    return Entity(qid, name, attr, desc, tuple(images.path(image, record) for image in record.texts("image_list")))


def _mention(record: Record, images: _ImageFolder) -> Mention:
    identity = record.text_or_integer("id")
    answer = record.text("answer").strip()
    if not answer:
        raise record.error('"answer" to be a qid or "nil"', shown(record.values["answer"]))
    image_path, image = record.text("imgPath"), None
    if image_path:
        stem = image_path.rsplit("/", 1)[-1].split(".", 1)[0]
        if not stem:
            raise record.error('"imgPath" to end in a file name', shown(image_path))
        image = images.path(stem + ".jpg", record)
    return Mention(
        id=identity,
        name=_name(record.text("mentions")),
        sentence=record.text("sentence"),
        image=image,
        answer=None if answer.lower() == "nil" else answer,
    )


def _check_ids(path: Path, ids: dict[str, int]) -> None:
    """Refuse a ``qid2id.json`` that belongs to another ``kb_entity.json``; it may have further keys (releases do)."""
    if not path.exists():
        return
    table = _load(path)
    if not isinstance(table, dict):
        raise InputError(path, "one JSON object", shown(table))
    hint = "It is not needed: remove it if the KB was changed on purpose"
    for qid, number in ids.items():
        if table.get(qid, ABSENT) != number:
            got = shown(table.get(qid, ABSENT))
            raise InputError(f"{path}, key {qid}", f"{number}, its id in kb_entity.json", got, hint)


def _records(path: Path) -> Iterator[Record]:
    values = _load(path)
    if not isinstance(values, list):
        raise InputError(path, "a list of JSON objects", shown(values))
    for number, value in enumerate(values, start=1):
        yield Record(path, "record", number, value)


def _load(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(path, "a file of the MIMIC layout", "no such file") from None
    except OSError as error:
        raise InputError(path, "a readable file", error.strerror) from None
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(path, "valid JSON", error, "The file may be truncated") from None


def _require_folder(dir: Path) -> None:
    if not dir.is_dir():
        got = "a file" if dir.exists() else "no such folder"
        raise InputError(dir, "a folder with a data set in the MIMIC layout", got)


def _name(text: str) -> str:
    return " ".join(valid_text(unquote(text)).split())
