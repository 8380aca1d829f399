"""Which backend runs an op."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from m3el_fast.ops import gpu
from m3el_fast.ops import native as cpu

Backend = Literal["auto", "reference", "native", "triton"]
Chosen = Literal["reference", "native", "triton"]


def choose(backend: Backend, tensor: Tensor, native: str | None, triton: str | None) -> Chosen:
    """The backend that runs an op.

    Args:
        tensor: an argument; ``auto`` takes Triton's kernel for one on a GPU, the native one elsewhere.
        native, triton: what that kernel does not cover among the arguments, or None.

    Raises:
        ValueError: the backend that was asked for cannot serve, or is unknown.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend: expected 'auto', 'reference', 'native' or 'triton', got {backend!r}")
    if backend == "reference":
        return "reference"
    if backend == "auto":
        if gpu.on_gpu(tensor):
            return "triton" if not gpu.MISSING and triton is None else "reference"
        return "native" if not cpu.MISSING and native is None else "reference"
    missing = cpu.MISSING if backend == "native" else gpu.MISSING
    obstacle = native if backend == "native" else triton
    if missing:
        raise ValueError(f"backend {backend!r}: {missing}")
    if obstacle:
        raise ValueError(f"backend {backend!r}: {obstacle}; 'auto' and 'reference' do")
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
