"""The CUDA kernels of the native extension as a backend: whether they are there, and for which tensors."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from m3el_fast.ops import gpu
from m3el_fast.ops.build import native_report
from m3el_fast.ops.compiled_for import driver_obstacle, driver_version, runs

_BUILT = native_report().cuda

MISSING = native_report().missing or native_report().cuda_missing or driver_obstacle(_BUILT, driver_version())
NO_KERNEL = "this op has no CUDA kernel"

# Where the kernels are registered, and for which devices: tests put those of tests/cuda_host, which run on a CPU, here.
LIBRARY = torch.ops.m3el_fast
DEVICE = "cuda"

# such as ("90", "a", "+PTX"); taken apart here because torch.compile traces what decides on a backend
_CODES = re.findall(r"sm_(\d+)([af]?)(\+PTX)?", _BUILT)

_SMALL = ((8, 6), (8, 9), (12, 0), (12, 1))

MOST_SELECTED = 2048  # k of top-k, and candidates of a mention


def not_on_device(first: Tensor, *others: Tensor | None) -> str | None:
    """The obstacle that a tensor is not on a CUDA device, or not on that of the first, or None."""
    if first.device.type != DEVICE:
        return f"the kernel takes CUDA tensors, got {first.device}"
    return gpu.too_old(first) or not_built_for(first.device) or gpu.elsewhere(first, *others)


def not_built_for(device: torch.device) -> str | None:
    """The obstacle that the kernels were compiled for other GPUs than ``device``, or None."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if runs(_CODES, major, minor):
        return None
    return f"the kernels were built for other GPUs ({_BUILT}) than this one of compute capability {major}.{minor}"


def little_shared_memory(device: torch.device) -> bool:
    """Whether a block has 99 KB of shared memory at most, as on the smaller GPUs of a generation."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in _SMALL


def not_selectable(k: int, scores: Tensor, *others: Tensor) -> str | None:
    """The obstacle to the k best of ``scores`` and of a running selection, ``others``, or None."""
    obstacle = not_on_device(scores, *others)
    if obstacle:
        return obstacle
    if scores.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the kernel takes fp32, bf16 and fp16, got {scores.dtype}"
    if k > MOST_SELECTED:
        return f"the kernel selects up to {MOST_SELECTED:,}, got {k:,}"
    if scores.shape[1] >= 1 << 31:
        return f"the kernel takes fewer than 2^31 columns, got {scores.shape[1]:,}"
    return None
