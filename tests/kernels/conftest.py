"""Triton kernels run on the GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from m3el_fast.ops import gpu

if gpu.INTERPRETED and not gpu.MISSING:
    from triton_interpreter import correct_bf16

    correct_bf16()


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that launchers allocate holds NaN."""
    empty = Tensor.new_empty

    def poisoned(self: Tensor, *size: int, **options: object) -> Tensor:
        return empty(self, *size, **options).fill_(math.nan)

    monkeypatch.setattr(Tensor, "new_empty", poisoned)


@pytest.fixture
def like_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """``backend="auto"`` takes Triton's kernels, as it does for tensors on a GPU."""
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
