"""The Triton kernels as a backend: whether they are there, and for which tensors."""

from __future__ import annotations

import os
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec

import torch
from torch import Tensor

MISSING = "" if find_spec("triton") else "triton is not installed: pip install triton (Linux, for NVIDIA GPUs)"
NO_KERNEL = "this op has no Triton kernel"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def report() -> str:
    """One line: what the Triton kernels can run on here, or why on nothing."""
    if MISSING:
        return f"triton kernels: not there ({MISSING})"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    name = packages_distributions()["triton"][0]  # triton, pytorch-triton, ...
    return f"triton kernels: {name} {version(name)}, {', '.join(devices) or 'no CUDA device'}"


def on_gpu(tensor: Tensor) -> bool:
    """Whether ``auto`` looks for a Triton kernel."""
    return tensor.is_cuda


def not_gpu_floats(*tensors: Tensor) -> str | None:
    """The obstacle that the kernels cannot run on ``tensors``, or None."""
    wrong = next((t for t in tensors if t.device != tensors[0].device), None)
    if wrong is not None:
        return f"the kernel takes tensors of one device, got {tensors[0].device} and {wrong.device}"
    if not (tensors[0].is_cuda or INTERPRETED):
        return f"the kernel takes CUDA tensors, got {tensors[0].device}"
    wrong = next((t for t in tensors if t.dtype not in _DTYPES), None)
    if wrong is not None:
        return f"the kernel takes fp32, bf16 and fp16, got {wrong.dtype}"
    return None
