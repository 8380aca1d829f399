from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_hub import FakeHub, running_hub
from hub.made import RESULTS, Made, encode
from tiny import tiny_config, tiny_model, write_tiny


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    data = write_tiny(folder / "data")
    model = tiny_model(tiny_config(data)).eval()
    model.results = RESULTS
    encode(model, data, folder / "index")
    return Made(data, model, folder / "index")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with running_hub(tmp_path / "cache") as hub:
        yield hub
