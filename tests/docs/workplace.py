"""The folder in which a page's code runs: under the names that pages write (CHECKPOINT, INDEX, photo.jpg) lies what
they stand for, made from the tiny data set and a model that was trained on it in a second."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from docs.blocks import PAGES
from m3el_fast.index.__main__ import main as index_command
from m3el_fast.train import train
from tiny import tiny_config, write_tiny

# Ids of the tiny data set, and those of the pages that they become.
IDS = {"Q0": "Q2249", "Q1": "Q42", "Q2": "Q64"}
PICTURES = ("photo.jpg", "kb/Q1.jpg")
MENTIONS = [
    {"mention": "Elm", "sentence": "We saw the inn number 0", "image": "photo.jpg"},
    {"mention": "Elm mill", "sentence": "A mill by the water"},
]
STAND_INS = {
    # a minute of training, with the preset's data set and epochs; what it prints and writes is the same
    "python -m m3el_fast.train": "python -m m3el_fast.train --config tiny.yaml --output runs/sample",
}


def make_home(folder: Path) -> Path:
    """What does not depend on the page: ``DIR``, a data set; ``run``, a training run on it; ``INDEX`` of its KB."""
    data = write_tiny(folder / "DIR")
    for path in data.glob("*.json"):
        text = re.sub(r'"(Q\d+)"', lambda match: f'"{IDS.get(match[1], match[1])}"', path.read_text())
        path.write_text(text)
    shutil.copy(data / "mention_image/red.jpg", data / "mention_image/4858.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3EL_CACHE", str(folder / "cache"))
        train(tiny_config(data), folder / "run")
        index_command(["build", str(folder / "run/checkpoint"), "--kb", str(data), "--out", str(folder / "INDEX")])
    return folder


def make_workplace(page: str, home: Path, folder: Path) -> None:
    """Lay out ``folder`` for a page; what the page itself makes is not there."""
    text = PAGES[page].read_text(encoding="utf-8")
    shutil.copytree(home / "DIR", folder / "DIR")
    shutil.copytree(home / "run/checkpoint", folder / "CHECKPOINT")
    if re.search(r"^python -m m3el_fast\.train( |$)", text, re.MULTILINE):
        shutil.copytree(home / "DIR", folder / "runs/sample/data")
        (folder / "tiny.yaml").write_text(tiny_config(folder / "runs/sample/data").dump())
    else:
        shutil.copytree(home / "run/checkpoint", folder / "runs/sample/checkpoint")
    if "--out INDEX" not in text:
        shutil.copytree(home / "INDEX", folder / "INDEX")
    for name in PICTURES:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 16), "red").save(folder / name)
    (folder / "mentions.jsonl").write_text("".join(json.dumps(mention) + "\n" for mention in MENTIONS))
    _write_new_entities(folder)
    if "en_core_web_sm" in text:
        _write_pipeline(folder / "en_core_web_sm")


def _write_new_entities(folder: Path) -> None:
    """A KB of ids that ``DIR`` has not."""
    new = shutil.copytree(folder / "DIR", folder / "NEW_ENTITIES")
    entities = json.loads((new / "kb_entity.json").read_text())
    (new / "kb_entity.json").write_text(json.dumps([entity | {"qid": f"{entity['qid']}00"} for entity in entities]))
    (new / "qid2id.json").unlink()


def _write_pipeline(folder: Path) -> None:
    """In the place of a trained pipeline: one that finds names by a list. ``spacy.load`` takes a folder as it does a
    package."""
    import spacy

    import m3el_fast.adapters.spacy  # noqa: F401  as the entry point of an installed package does

    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "HOUSE", "pattern": name} for name in ("Keslow", "Wenlow")])
    nlp.to_disk(folder)
