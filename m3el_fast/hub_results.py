"""``metrics.json``: what was measured of a checkpoint's weights, kept in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from m3el_fast.metrics import Metrics
from m3el_fast.side_files import SideFile

RESULTS_FILE = "metrics.json"

SplitName = Literal["dev", "test"]


class Results(SideFile):
    """Metrics of the full model, each mention ranked against all entities of the KB.

    Attributes:
        data: name of the data set; entities: of its KB.
        splits: metrics by split, of one at least.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")
    file, content = RESULTS_FILE, "metrics as m3el_fast writes them"
    data: str
    entities: int
    splits: dict[SplitName, Metrics] = Field(min_length=1)


def data_name(folder: Path) -> str:
    """A data set's name: that of its files (``WIKIMEL_test.json``), else of its folder."""
    names = {path.name.removesuffix("_test.json") for path in folder.glob("*_test.json")}
    return names.pop() if len(names) == 1 else folder.resolve().name
