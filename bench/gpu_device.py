"""Where the GPU's benchmarks run: on a GPU; untimed in Triton's interpreter and on the emulator of tests/cuda_host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from bench.gpu_timing import Instant
from m3el_fast.ops import cuda, gpu

_NO_DEVICE = "no CUDA device (with TRITON_INTERPRET=1 this runs untimed, in Triton's interpreter and on an emulator)"
_OBSTACLE = gpu.MISSING or ("" if torch.cuda.is_available() or gpu.INTERPRETED else _NO_DEVICE)

# Of every file of GPU benchmarks; and of those that need the extension's CUDA kernels.
MARKS = [pytest.mark.skipif(bool(_OBSTACLE), reason=_OBSTACLE), pytest.mark.benchmark(timer=Instant)]
EXTENSION = pytest.mark.skipif(torch.cuda.is_available() and bool(cuda.MISSING), reason=cuda.MISSING)


@contextmanager
def device() -> Iterator[str]:
    """``cuda``; without a GPU ``cpu``, where emulated kernels take the place of the GPU's in here."""
    if torch.cuda.is_available():
        yield "cuda"
        return
    from cuda_host import emulated
    from triton_interpreter import correct_bf16

    correct_bf16()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulated.replacements().items():
            patch.setattr(cuda, name, value)
        yield "cpu"
