"""What tests of the spaCy component share: folders of a tiny model, and a pipeline around it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spacy
from spacy.language import Language
from spacy.tokens import Doc

import m3el_fast.adapters.spacy  # noqa: F401  registers the factory, as the entry point does
from m3el_fast.link import Linker
from tiny import tiny_config, tiny_model, write_tiny

TEXT = "We saw the Elm inn by day. At night the Elm mill burnt, and the Ash tree with it."
NAMES = {"Elm inn": "HOUSE", "Elm mill": "HOUSE", "Elm school": "HOUSE", "Ash tree": "TREE"}


@dataclass(frozen=True)
class Folders:
    """Of a data set, a model that fits it, and an index of its KB."""

    data: Path
    checkpoint: Path
    index: Path

    @property
    def config(self) -> dict[str, Any]:
        return {"checkpoint": str(self.checkpoint), "index": str(self.index), "k": 3}

    def linker(self) -> Linker:
        return Linker.from_pretrained(self.checkpoint, index=self.index)


def write_folders(folder: Path) -> Folders:
    data = write_tiny(folder / "data")
    tiny_model(tiny_config(data)).save_pretrained(folder / "checkpoint")
    linker = Linker.from_pretrained(folder / "checkpoint")
    linker.index.path.rename(folder / "index")
    return Folders(data, folder / "checkpoint", folder / "index")


def write_entry_point(site: Path) -> Path:
    """A folder that, on the path, makes the entry point of pyproject.toml known as an installed package does."""
    line = 'm3el_linker = "m3el_fast.adapters.spacy:make_linker"'
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert f"[project.entry-points.spacy_factories]\n{line}\n" in project.read_text(encoding="utf-8")
    info = site / "m3el_fast_entry_point-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: m3el-fast-entry-point\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[spacy_factories]\n" + line.replace('"', "") + "\n")
    return site


def pipeline(config: dict[str, Any], sentences: bool = True) -> Language:
    """An English pipeline that finds :data:`NAMES` and links them."""
    nlp = spacy.blank("en")
    if sentences:
        nlp.add_pipe("sentencizer")
    patterns = [
        {"label": label, "pattern": [{"ORTH": word} for word in name.split()], "id": f"id-{name}"}
        for name, label in NAMES.items()
    ]
    nlp.add_pipe("entity_ruler").add_patterns(patterns)
    nlp.add_pipe("m3el_linker", config=config)
    return nlp


def linked(doc: Doc) -> list[tuple[str, str, float | None, Any]]:
    """Text, KB id, score and candidates of every entity."""
    return [(ent.text, ent.kb_id_, ent._.kb_score, ent._.kb_candidates) for ent in doc.ents]


def kb_ids(doc: Doc) -> list[str]:
    return [ent.kb_id_ for ent in doc.ents]
