"""``metrics.json``: what was measured of a checkpoint's weights, kept in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from m3el_fast.errors import InputError
from m3el_fast.metrics import Metrics

RESULTS_FILE = "metrics.json"

SplitName = Literal["dev", "test"]


class Results(BaseModel):
    """Metrics of the full model, each mention ranked against all entities of the KB.

    Attributes:
        data: name of the data set; entities: of its KB.
        splits: metrics by split, of one at least.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")
    data: str
    entities: int
    splits: dict[SplitName, Metrics] = Field(min_length=1)

    def write(self, folder: Path) -> None:
        (folder / RESULTS_FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What :meth:`write` wrote, None where there is none. Raises InputError where it is something else."""
        path = folder / RESULTS_FILE
        if not path.exists():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            where = f"{path}, key {key}" if key else path
            raise InputError(where, "metrics as m3el_fast writes them", first["msg"]) from None


def data_name(folder: Path) -> str:
    """A data set's name: that of its files (``WIKIMEL_test.json``), else of its folder."""
    names = {path.name.removesuffix("_test.json") for path in folder.glob("*_test.json")}
    return names.pop() if len(names) == 1 else folder.resolve().name
