"""The Triton kernels as a backend: whether they are there, and for which tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec

import torch
from torch import Tensor

MISSING = "" if find_spec("triton") else "triton is not installed: pip install triton (Linux, for NVIDIA GPUs)"
NO_KERNEL = "this op has no Triton kernel"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_OLDEST = (8, 0)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def report() -> str:
    """One line: what the Triton kernels can run on here, or why on nothing."""
    if MISSING:
        return f"triton kernels: not there ({MISSING})"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    name = packages_distributions()["triton"][0]  # triton, pytorch-triton, ...
    return f"triton kernels: {name} {version(name)}, {', '.join(devices) or 'no CUDA device'}"


def on_gpu(tensor: Tensor) -> bool:
    """Whether ``auto`` looks for a CUDA or a Triton kernel."""
    return tensor.is_cuda


@contextmanager
def launches(tensor: Tensor) -> Iterator[None]:
    """What a custom op does in here runs on the tensor's device, in the dtypes that it names: without autocast."""
    with torch.cuda.device_of(tensor), torch.autocast(tensor.device.type, enabled=False):
        yield


def elsewhere(first: Tensor, *others: Tensor | None) -> str | None:
    """The obstacle that one of ``others`` is on another device than the first, or None."""
    wrong = next((t for t in others if t is not None and t.device != first.device), None)
    return None if wrong is None else f"the kernel takes tensors of one device, got {first.device} and {wrong.device}"


def too_old(tensor: Tensor) -> str | None:
    """The obstacle that the tensor's GPU is older than the kernels, or None."""
    if tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < _OLDEST:
        return "the kernel takes GPUs of compute capability 8.0 and newer"
    return None


def not_gpu_floats(*tensors: Tensor) -> str | None:
    """The obstacle that the kernels cannot run on ``tensors``, or None."""
    obstacle = elsewhere(*tensors)
    if obstacle:
        return obstacle
    if not (tensors[0].is_cuda or INTERPRETED):
        return f"the kernel takes CUDA tensors, got {tensors[0].device}"
    old = too_old(tensors[0])
    if old:
        return old
    wrong = next((t for t in tensors if t.dtype not in _DTYPES), None)
    if wrong is not None:
        return f"the kernel takes fp32, bf16 and fp16, got {wrong.dtype}"
    return None
