import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton


def pytest_configure() -> None:
    # One thread: sums in one order, and several sessions on one machine do not fight. The variable is for subprocesses.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    gc.disable()


def pytest_collection_finish() -> None:
    # What was made while libraries were imported stays: no collection looks at it again, no forked process copies it.
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests leave the user's image cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3EL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = os.environ.get("M3EL_SHARED")
    if not folder:
        pytest.skip("M3EL_SHARED is not set: the folder with golden numbers and data sets")
    return Path(folder)
