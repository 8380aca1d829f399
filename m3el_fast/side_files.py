"""JSON files beside a checkpoint's weights that say what is known of these; not every checkpoint has them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from m3el_fast.errors import InputError
from m3el_fast.files import replace_file


class SideFile(BaseModel):
    """What such a file holds. A subclass gives the file's name, and what an error is to say that was expected in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: ClassVar[str]
    content: ClassVar[str]

    def write(self, folder: Path) -> None:
        """Put the file into a checkpoint's folder, whole or not at all."""
        with replace_file(folder / self.file) as temporary:
            temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """What :meth:`write` wrote, None where there is none. Raises InputError where it is something else."""
        path = folder / cls.file
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(path, cls.content, error.strerror) from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            hint = "A newer version may have written it; without the file the checkpoint works, too"
            raise InputError(f"{path}, key {key}" if key else path, cls.content, first["msg"], hint) from None
