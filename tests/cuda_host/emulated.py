"""The CUDA kernels on the host emulator, in the place of the extension's."""

from __future__ import annotations

import ctypes
import functools

import torch

from cuda_host.build import CUDA, load
from m3el_fast.ops import cuda


@functools.cache
def library() -> ctypes.CDLL:
    """Builds and loads all kernels: ``torch.ops.m3el_fast_host`` has them, for CPU tensors."""
    return load(sorted(CUDA.glob("*.cu")), sorted(CUDA.glob("*_ops.cpp")))


def replacements() -> dict[str, object]:
    """What takes the place of which attribute of ``m3el_fast.ops.cuda``."""
    library()
    return {"MISSING": "", "LIBRARY": torch.ops.m3el_fast_host, "DEVICE": "cpu"}


def take_place() -> None:
    """From here on ``backend="cuda"`` means the emulated kernels."""
    for name, value in replacements().items():
        setattr(cuda, name, value)
