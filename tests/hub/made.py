"""What tests of the Hub share: a model and an index of its KB, and what goes there of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from m3el_fast.calibration import Calibration
from m3el_fast.hub_results import Results
from m3el_fast.index import EntityIndex
from m3el_fast.index.__main__ import read_entities
from m3el_fast.metrics import Metrics
from m3el_fast.models import MELModel
from tiny import tiny_inputs, tiny_model

RESULTS = Results(data="TINY", entities=12, splits={"dev": Metrics.of(torch.tensor([1, 2, 30]))})
CALIBRATION = Calibration(
    temperature=0.7, nil_score=3.5, nil_threshold=0.2, data="TINY", entities=12, mentions=26, nil=2
)
MENTIONS = [{"mention": "Elm", "sentence": "We saw the inn number 0"}, {"mention": "Elm", "sentence": "a mill"}]
CHECKPOINT = {
    ".gitattributes",
    "README.md",
    "config.yaml",
    "metrics.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "towers.json",
}


@dataclass(frozen=True)
class Made:
    """A data set, a model and an index of its KB."""

    data: Path
    model: MELModel
    index: Path


def encode(model: MELModel, data: Path, out: Path) -> EntityIndex:
    entities = read_entities(model, data, False, None)
    return EntityIndex.build(model, entities.source, out, ids=entities.ids, names=entities.names, progress=False)


def other(model: MELModel) -> MELModel:
    """The same with other weights."""
    changed = tiny_model(model.config, seed=2)
    return changed.eval()


def index_files(index: Path) -> set[str]:
    """What travels of an index, as paths in a checkpoint."""
    names = {file.name for file in EntityIndex.open(index).manifest.files}
    return {f"index/{name}" for name in names | {"manifest.json"}}


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@torch.no_grad()
def scores(model: MELModel) -> torch.Tensor:
    inputs = tiny_inputs(model.encoder, 4, 3)
    union: torch.Tensor = model.matcher(model.features(inputs), model.features(inputs)).union
    return union
