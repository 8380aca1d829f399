"""What tests of the commands share: a data set, a checkpoint trained on it, and how a command ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from m3el_fast.errors import run_command
from m3el_fast.train import train
from tiny import tiny_config, write_tiny


@dataclass(frozen=True)
class Trained:
    """A finished run in ``run``, trained on ``data``."""

    data: Path
    run: Path

    @property
    def checkpoint(self) -> str:
        return str(self.run / "checkpoint")

    def copy_data(self, folder: Path) -> Path:
        """A copy of the data set that a test may damage."""
        return Path(shutil.copytree(self.data, folder))


def trained_in(folder: Path) -> Iterator[Trained]:
    """Train; while the caller has the result, decoded images are cached in ``folder`` too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3EL_CACHE", str(folder / "cache"))
        trained = Trained(write_tiny(folder / "data"), folder / "run")
        train(tiny_config(trained.data), trained.run)
        yield trained


# Mentions as a user of the link command writes them; image paths are relative to the file.
MENTIONS: list[dict[str, Any]] = [
    {"mention": "Elm", "sentence": "We saw the inn number 0", "image": "red.jpg"},
    {"mention": "Elm mill", "sentence": "A mill by the water", "id": 17},
    {"mention": "Élm\nschool", "sentence": "School number 3 — \u2028 und so weiter", "image": ""},
    {"mention": "", "sentence": "", "image": None},
    {"mention": "Elm", "sentence": "We saw the inn number 0", "image": "sub/blue.png"},
]


def write_mentions(folder: Path) -> Path:
    """``mentions.jsonl`` with :data:`MENTIONS`, and their images; blank lines, CRLF, no newline at the end."""
    Image.new("RGB", (20, 16), "red").save(folder / "red.jpg")
    (folder / "sub").mkdir()
    Image.new("RGB", (9, 9), "blue").save(folder / "sub" / "blue.png")
    lines = [json.dumps(record, ensure_ascii=False) for record in MENTIONS]
    text = f"\n{lines[0]}\n   \n{lines[1]}\r\n" + "\n".join(lines[2:])
    (folder / "mentions.jsonl").write_text(text, encoding="utf-8", newline="")
    return folder


def link_arguments(trained: Trained, folder: Path, *more: str) -> list[str]:
    """The link command's, from ``mentions.jsonl`` to ``links.jsonl`` in ``folder``."""
    files = ["--input", str(folder / "mentions.jsonl"), "--output", str(folder / "links.jsonl")]
    return [trained.checkpoint, *files, *more]


def failure(main: Callable[[list[str]], None], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that ends with exit status 2 and, last on stderr, one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_command(lambda: main(arguments))
    assert end.value.code == 2
    *bars, line = capsys.readouterr().err.splitlines()
    assert all("%|" in bar or not bar.strip() for bar in bars), bars  # progress bars, if anything
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
