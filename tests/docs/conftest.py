from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

MISSING = [name for name in ("markdown_it", "fastapi", "uvicorn", "python_multipart") if find_spec(name) is None]


class NotInstalled(pytest.Module):
    """A module whose imports would fail."""

    def collect(self) -> Any:
        pytest.skip(f"{', '.join(MISSING)} not installed: pip install -e '.[docs,serve]'")


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> NotInstalled | None:
    return NotInstalled.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def model_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a checkpoint trained on it and an index: what the pages' placeholders stand for."""
    from docs.workplace import make_home

    return make_home(tmp_path_factory.mktemp("docs"))
