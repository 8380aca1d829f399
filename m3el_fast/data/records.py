"""JSON objects of a file, checked field by field; every defect is an :class:`InputError` that names file and place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from m3el_fast.errors import InputError

ABSENT = object()


class Record:
    """One JSON object of a file; its fields are checked as they are read.

    Attributes:
        where: the file and the place in it (``"kb_entity.json, record 3"``), to which :meth:`error` adds the id.
        number: of the record or line in the file, from 1.
        values: the fields.
    """

    __slots__ = ("number", "values", "where")

    def __init__(self, path: Path, unit: str, number: int, value: object) -> None:
        self.where, self.number = f"{path}, {unit} {number}", number
        if not isinstance(value, dict):
            raise InputError(self.where, "a JSON object", shown(value))
        self.values: dict[str, Any] = value

    def error(self, expected: str, got: object, hint: str = "") -> InputError:
        name = next((f" ({key} {shown(self.values[key])})" for key in ("qid", "id") if key in self.values), "")
        return InputError(f"{self.where}{name}", expected, got, hint)

    def get(self, key: str) -> Any:
        """The value, or :data:`ABSENT`."""
        return self.values.get(key, ABSENT)

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(key) is not None

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise self.error(f'"{key}" to be a string', shown(value))
        return valid_text(value)

    def integer(self, key: str) -> int:
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f'"{key}" to be an integer', shown(value))
        return value

    def text_or_integer(self, key: str) -> str:
        """Either, as a string."""
        value = self.get(key)
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise self.error(f'"{key}" to be a string or an integer', shown(value))
        return valid_text(str(value))

    def texts(self, key: str) -> list[str]:
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f'"{key}" to be a list of strings', shown(value))
        return [valid_text(item) for item in value]


def read_json_lines(path: Path, content: str, progress: bool = False) -> Iterator[tuple[int, Any]]:
    """The values of a JSON Lines file with their line numbers from 1, one at a time; blank lines are skipped.

    Args:
        path: UTF-8, with or without a byte order mark.
        content: what the file is, for the error of a missing one: "a JSON Lines file of mentions".
        progress: show a progress bar.

    Raises:
        InputError: no such file, not readable, not UTF-8, a line that is not JSON.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size or None  # a pipe has none
            with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
                for number, line in enumerate(file, start=1):
                    bar.update(len(line))
                    text = _decode(line, path, number).rstrip()
                    if text:
                        yield number, _parse(text, path, number)
    except FileNotFoundError:
        raise InputError(path, content, "no such file") from None
    except OSError as error:
        raise InputError(path, "a readable file", error.strerror) from None


def _decode(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {number}", "UTF-8 text", error) from None


def _parse(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
        raise InputError(f"{path}, line {number}", "a JSON object", error) from None


def valid_text(text: str) -> str:
    """Replace lone surrogates (halves of characters, where a text was cut), which no tokenizer accepts."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def shown(value: object) -> str:
    """A value as JSON, cut to 60 characters."""
    if value is ABSENT:
        return "no such field"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "..."
