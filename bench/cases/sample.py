"""The generated data set that ``m3el train`` trains on without arguments, with a fresh model of its preset."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import torch

from m3el_fast.config import RunConfig
from m3el_fast.data import sample
from m3el_fast.dataset import Dataset, load_dataset
from m3el_fast.models import MELModel
from m3el_fast.train import make_model


def sample_set(folder: Path, houses: int) -> Path:
    """The data set with ``houses`` names of houses (nine entities each) below ``folder``: found, or generated."""
    path = folder / f"sample-{houses}"
    if not path.exists():
        with mock.patch.object(sample, "NAMES", houses):
            sample.write_sample(path)
    return path


def load(path: str) -> tuple[RunConfig, MELModel, Dataset]:
    """The preset ``sample`` on the data set in ``path``, its fresh model and all splits."""
    config = RunConfig.load("sample")
    config = config.model_copy(update={"data": config.data.model_copy(update={"dir": path})})
    torch.manual_seed(config.train.seed)
    model = make_model(config)
    return config, model, load_dataset(config.data, Path(path), model.encoder, ["train", "test"], progress=False)
