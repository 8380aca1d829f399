"""What callers give to be linked: mentions as mappings, or as the lines of a JSON Lines file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3el_fast.data.layout import Mention
from m3el_fast.data.records import read_json_lines, valid_text
from m3el_fast.errors import InputError

_READ = ("mention", "sentence", "image", "id", "candidates")
_KEPT = ("answer", "split")  # of mentions that data sets are imported from: not looked at


@dataclass(frozen=True)
class Request:
    """A mention to link; ``where`` it was given, and the ids of the ``candidates`` to choose from (None = all)."""

    where: str
    mention: Mention
    candidates: list[str] | None


def parse_request(record: object, where: str, folder: Path | None = None) -> Request:
    """Check one mention given by a caller, as :func:`parse_mention`, and its candidates."""
    mention = parse_mention(record, where, folder)
    assert isinstance(record, Mapping)
    candidates = record.get("candidates")
    if candidates is not None and (
        isinstance(candidates, str)
        or not isinstance(candidates, Sequence)
        or not all(isinstance(one, str) for one in candidates)
    ):
        got = json.dumps(candidates, default=str)
        raise InputError(f"{where}, field candidates", "a list of ids, each a string", got)
    return Request(where, mention, None if candidates is None else list(candidates))


def parse_mention(record: object, where: str, folder: Path | None = None) -> Mention:
    """Check one mention given by a caller; image paths are relative to ``folder``."""
    if not isinstance(record, Mapping):
        raise InputError(where, 'an object with "mention", "sentence" and perhaps "image"', type(record).__name__)
    if unknown := set(record) - {*_READ, *_KEPT}:
        raise InputError(where, f"no fields but {', '.join(_READ + _KEPT)}", ", ".join(sorted(map(str, unknown))))
    for field in ("mention", "sentence"):
        if not isinstance(record.get(field), str):
            raise InputError(f"{where}, field {field}", "a string", json.dumps(record.get(field), default=str))
    name = " ".join(valid_text(record["mention"]).split())
    image = _image(record.get("image"), f"{where}, field image", folder)
    return Mention(str(record.get("id", "")), name, valid_text(record["sentence"]), image, None)


def _image(image: object, where: str, folder: Path | None) -> Path | None:
    if not isinstance(image, str | Path | None):
        raise InputError(where, "a path or nothing", type(image).__name__)
    if not image:
        return None
    if "\0" in str(image):
        raise InputError(where, "a path", json.dumps(str(image)))
    path = Path(valid_text(image) if isinstance(image, str) else image)
    return path if folder is None else folder / path


def read_jsonl(path: Path, images: Path | None = None) -> list[tuple[dict[str, Any], Request]]:
    """The records of a JSON Lines file and the mentions in them; blank lines are skipped.

    Args:
        images: the folder that image paths are relative to; None = that of the file.
    """
    folder = path.parent if images is None else images
    return [
        (record, parse_request(record, f"{path}, line {number}", folder))
        for number, record in read_json_lines(path, "a JSON Lines file of mentions")
    ]
