"""The instruction sets of the native kernels that this machine has; what their tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from m3el_fast.ops import native

ALL_LEVELS = ("scalar", "avx2", "avx512", "avx512bf16", "amx")


def _has(level: str) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M3EL_CPU_ISA", level)
        try:
            torch.ops.m3el_fast.cpu_isa()
        except RuntimeError:
            return False
    return True


LEVELS = [level for level in ALL_LEVELS if not native.MISSING and _has(level)]


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def train(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> list[float]:
    """The losses of 30 steps."""
    losses = []
    for _ in range(30):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses
