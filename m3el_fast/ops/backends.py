"""Which backend runs an op."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from m3el_fast.ops import cuda as extension
from m3el_fast.ops import gpu
from m3el_fast.ops import native as cpu

Chosen = Literal["reference", "native", "triton", "cuda"]
Backend = Literal["auto"] | Chosen


def choose(
    backend: Backend,
    tensor: Tensor,
    native: str | None,
    triton: str | None,
    cuda: str | None = extension.NO_KERNEL,
) -> Chosen:
    """The backend that runs an op.

    Args:
        tensor: an argument; ``auto`` takes CUDA's or else Triton's kernel for one on a GPU, the native one elsewhere.
        native, triton, cuda: what that kernel does not cover among the arguments, or None.

    Raises:
        ValueError: the backend that was asked for cannot serve, or is unknown.
    """
    obstacles: dict[Chosen, str | None] = {"native": native, "triton": triton, "cuda": cuda}
    missing: dict[Chosen, str] = {"native": cpu.MISSING, "triton": gpu.MISSING, "cuda": extension.MISSING}
    if backend == "auto":
        order: tuple[Chosen, ...] = ("cuda", "triton") if gpu.on_gpu(tensor) else ("native",)
        return next((name for name in order if not missing[name] and obstacles[name] is None), "reference")
    if backend == "reference":
        return "reference"
    if backend not in obstacles:
        raise ValueError(f"backend: expected 'auto', 'reference', 'native', 'triton' or 'cuda', got {backend!r}")
    if missing[backend]:
        raise ValueError(f"backend {backend!r}: {missing[backend]}")
    if obstacles[backend]:
        raise ValueError(f"backend {backend!r}: {obstacles[backend]}; 'auto' and 'reference' do")
    return backend


def scan_precision(device: torch.device | None = None) -> Literal["fp32", "bf16"]:
    """The precision of products in which ``device`` (None = the CPU) scores fastest: bf16 on a GPU with Triton, and on
    a CPU with instructions for it.

    Raises:
        RuntimeError: the environment variable M3EL_CPU_ISA names no level of this machine.
    """
    if device is not None and device.type == "cuda":
        return "fp32" if gpu.MISSING else "bf16"
    return cpu.scan_precision()
