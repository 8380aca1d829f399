from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from serve.serving import Served

MISSING = [name for name in ("fastapi", "uvicorn", "httptools", "python_multipart", "httpx") if find_spec(name) is None]


class NotInstalled(pytest.Module):
    """A module whose imports would fail."""

    def collect(self) -> Any:
        pytest.skip(f"{', '.join(MISSING)} not installed: pip install -e '.[serve,dev]'")


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> NotInstalled | None:
    return NotInstalled.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model, an index of the tiny KB and the KB; one entity's name is markup."""
    from serve.serving import make_served

    return make_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def address(served: Served) -> Iterator[str]:
    """Of a server that links to the index of ``served`` and knows the KB."""
    from serve.serving import running

    with running(served.service(kb=True)) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    import httpx

    with httpx.Client(base_url=address, timeout=30) as client:
        yield client
