"""A user's own JSON Lines and pictures as a data set in the MIMIC layout (spec section 7)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

from tqdm import tqdm

from m3el_fast.data.images import MISSING, NOT_A_FILE, ImageReport, UnreadableImage, read_image_file
from m3el_fast.data.layout import Split
from m3el_fast.data.new_folder import new_folder
from m3el_fast.data.own_records import NIL, OwnEntity, OwnMention, read_entities, read_mentions
from m3el_fast.data.splitting import split_sentences
from m3el_fast.errors import InputError

_SHOWN = 3


@dataclass(frozen=True)
class Import:
    """What an import met that is allowed, but may be a mistake.

    Attributes:
        absent: place and answer of each mention whose answer is no entity's id.
        images: what became of the images.
    """

    absent: list[tuple[str, str]]
    images: ImageReport

    def warnings(self) -> list[str]:
        """One line for each kind; empty when all is well."""
        lines = []
        if self.absent:
            first = "; ".join(f"{answer} in {where}" for where, answer in self.absent[:_SHOWN])
            more = "; ..." if len(self.absent) > _SHOWN else ""
            lines.append(f"warning: answers that are no entity's id: {len(self.absent):,} ({first}{more})")
        if self.images.summary():
            lines.append(f"warning: {self.images.summary()}")
        return lines


def import_data(
    folder: Path,
    entities: Path,
    mentions: Path | Mapping[Split, Path] | None = None,
    *,
    entity_images: Path | None = None,
    mention_images: Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Import:
    """Write a data set in the MIMIC layout.

    Entities are streamed: about 0.4 kB of memory each, for ids and image names. Mentions are held, as in training.

    Args:
        folder: must not exist; it appears when all of it is written.
        entities: JSON Lines of ``id``, ``name``, ``text`` and perhaps ``image`` or ``images``.
        mentions: JSON Lines of ``mention``, ``sentence``, ``answer`` (the id of an entity, or null) and perhaps
            ``image``, ``id`` and ``split``; without ``split``, :func:`~m3el_fast.data.splitting.split_sentences` does
            it. Or a file for each split, or for some; or None: a KB alone.
        entity_images, mention_images: folders below which the images are; None = that of the file that names them.
        seed: of the split.
        progress: show progress bars.

    Raises:
        InputError: ``folder`` exists or cannot be made, a file cannot be read, a line is no entity or mention, an id is
            there twice, an image's name leads out of its folder, some mentions have a ``split`` and some have none, or
            a split is without a mention whose answer is an entity.
    """
    entity_images = _image_folder(entity_images, entities)
    report = ImageReport()
    with new_folder(folder, "the data set") as draft:
        if not entities.exists():  # found before the mentions are read
            raise InputError(entities, "a JSON Lines file of entities", "no such file")
        parts = _split_mentions(mentions, mention_images, seed, progress)
        kb = _Entities({mention.answer for own in parts.values() for mention in own if mention.answer is not None})
        _write_list(draft / "kb_entity.json", kb.records(read_entities(entities, kb.lines, progress)))
        if not kb.lines:
            raise InputError(entities, "at least one entity", "an empty file")
        (draft / "qid2id.json").write_text(json.dumps({qid: row for row, qid in enumerate(kb.lines)}), encoding="utf-8")
        numbered = _Mentions(kb.names)
        for split, own in parts.items():
            _require_answer(split, own, kb.lines)
            _write_list(draft / f"{_name(folder)}_{split}.json", numbered.records(own))
        below = ((entity_images / name, name) for name in kb.images)
        _place_images(below, len(kb.images), draft / "kb_image", report, progress)
        _place_images(numbered.images.items(), len(numbered.images), draft / "mention_image", report, progress)
    own = [mention for part in parts.values() for mention in part]
    absent = [(m.where, m.answer) for m in own if m.answer is not None and m.answer not in kb.lines]
    return Import(absent, report)


def _image_folder(given: Path | None, file: Path) -> Path:
    if given is not None and not given.is_dir():
        raise InputError(given, "a folder of images", "a file" if given.exists() else "no such folder")
    return file.parent if given is None else given


def _split_mentions(
    given: Path | Mapping[Split, Path] | None, images: Path | None, seed: int, progress: bool
) -> dict[Split, list[OwnMention]]:
    """The mentions of each split, empty where none are given."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {split: _mentions(path, images, split, progress) for split, path in given.items()}
    mentions = _mentions(given, images, None, progress)
    parts: dict[Split, list[OwnMention]] = {split: [] for split in get_args(Split)}
    drawn = split_sentences([mention.sentence for mention in mentions], seed)
    for mention, split in zip(mentions, drawn, strict=True):
        if (mention.split is None) != (mentions[0].split is None):
            raise InputError(mention.where, '"split" in every line or in none', mention.split or "none here")
        parts[mention.split or split].append(mention)
    return parts


def _mentions(path: Path, images: Path | None, split: Split | None, progress: bool) -> list[OwnMention]:
    return list(read_mentions(path, _image_folder(images, path), split, progress))


def _require_answer(split: Split, mentions: list[OwnMention], ids: Mapping[str, int]) -> None:
    if not any(mention.answer in ids for mention in mentions):
        expected, got = "a mention whose answer is the id of an entity", f"none of {len(mentions):,}"
        raise InputError(f"split {split}", expected, got, "Training needs one in each of train, dev and test")


def _name(folder: Path) -> str:
    """What the files of the splits are called; reading skips hidden ones."""
    return folder.resolve().name.lstrip(".") or "data"


class _Entities:
    """Makes the layout's records of entities, and remembers what else is needed of them.

    Attributes:
        lines: line of each id, in order.
        names: of those whose id is among ``wanted``.
        images: each name once, in order.
    """

    def __init__(self, wanted: set[str]) -> None:
        self.wanted = wanted
        self.lines: dict[str, int] = {}
        self.names: dict[str, str] = {}
        self.images: dict[str, None] = {}

    def records(self, entities: Iterable[OwnEntity]) -> Iterator[dict[str, Any]]:
        for row, entity in enumerate(entities):
            if entity.id in self.wanted:
                self.names[entity.id] = entity.name
            self.images.update(dict.fromkeys(entity.images))
            yield {
                "id": row,
                "type": "entity",
                "qid": entity.id,
                "entity_name": _quoted(entity.name),
                "attr": entity.text,
                "image_list": entity.images,
            }


class _Mentions:
    """Makes the layout's records of mentions, whose image names must be flat and differ before their first dot.

    Attributes:
        images: a numbered name for each source, in order.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.images: dict[Path, str] = {}

    def records(self, mentions: Iterable[OwnMention]) -> Iterator[dict[str, Any]]:
        for mention in mentions:
            image = mention.image
            yield {
                "id": mention.id,
                "sentence": mention.sentence,
                "imgPath": "" if image is None else self.images.setdefault(image, f"{len(self.images)}.jpg"),
                "mentions": _quoted(mention.name),
                "entities": "" if mention.answer is None else self.names.get(mention.answer, ""),
                "answer": NIL if mention.answer is None else mention.answer,
            }


def _quoted(name: str) -> str:
    """A name that the layout's readers, who unquote names as parts of URLs, read as it is."""
    return name if unquote(name) == name else name.replace("%", "%25")


def _write_list(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as out:
        out.write("[")
        for number, record in enumerate(records):
            out.write(",\n" if number else "\n")
            out.write(json.dumps(record, ensure_ascii=False))
        out.write("\n]\n")


def _place_images(
    sources: Iterable[tuple[Path, str]], count: int, folder: Path, report: ImageReport, progress: bool
) -> None:
    """Put each source into a new folder under a name; what is not there or cannot be read is counted."""
    folder.mkdir()
    for source, name in tqdm(sources, "images", count, unit="image", disable=not (progress and count), leave=False):
        report.add(source, _place(source, folder / name))


def _place(source: Path, target: Path) -> str | None:
    """A hard link, which needs no space and, unlike a symbolic one, stays inside the data set; else a copy."""
    if not os.path.isfile(source):
        return NOT_A_FILE if os.path.exists(source) else MISSING
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except FileExistsError:  # names that differ in case, where the file system does not tell them apart
        return None
    except OSError:  # another disk, or no hard links there
        try:
            data = read_image_file(source)
        except UnreadableImage as error:
            return str(error)
        target.write_bytes(data)
    return None
