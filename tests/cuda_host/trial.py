"""Runs the small kernels of ``planted/``."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from cuda_host.build import HERE, load

RAMP = torch.arange(256, dtype=torch.float32)


@functools.cache
def planted(file: str) -> ctypes.CDLL:
    library = load([HERE / f"planted/{file}.cu"])
    library.run.restype = ctypes.c_char_p
    return library


def run(
    file: str, kernel: str, n: int = 0, seed: int = 0, given: Tensor = RAMP, out: Tensor | None = None
) -> tuple[str, Tensor]:
    """Findings of a kernel of ``planted/<file>.cu`` and its output, [256] fp32 where none is given."""
    library = planted(file)
    library.m3el_cuda_host_seed(seed)
    out = torch.zeros(256) if out is None else out
    memory = [part for t in (given, out) for part in (ctypes.c_void_p(t.data_ptr()), ctypes.c_int64(t.nbytes))]
    findings: bytes = library.run(kernel.encode(), *memory, n)
    return findings.decode(), out
