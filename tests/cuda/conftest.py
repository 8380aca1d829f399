"""CUDA kernels run on the GPU where there is one, else on the host emulator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cuda_host import emulated
from cuda_host.build import compiler
from m3el_fast.ops import cuda


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where tensors for ``backend="cuda"`` live."""
    if torch.cuda.is_available():
        if cuda.MISSING:
            pytest.skip(f"no CUDA kernels: {cuda.MISSING}")
        return "cuda"
    if not compiler():
        pytest.skip("no C++ compiler, which the host emulator needs")
    for name, value in emulated.replacements().items():
        monkeypatch.setattr(cuda, name, value)
    return "cpu"


@pytest.fixture
def reorder(device: str) -> Callable[[int], None]:
    """Sets the seed of the order in which the emulator runs threads and blocks; a GPU has its own."""
    return (lambda seed: None) if device == "cuda" else emulated.library().m3el_cuda_host_seed
