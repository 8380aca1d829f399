"""The native part: loads the extension once and says what it is, or why it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

INTERFACE = 5  # kInterface of csrc/native.cpp

# written by csrc/native_build.py
_NOTE = Path(__file__).parents[1] / "_native_missing.txt"
_CUDA_NOTE = Path(__file__).parents[1] / "_cuda_missing.txt"


@dataclass(frozen=True)
class NativeReport:
    """What the native part says about itself; where it is missing, why, and all the rest but torch is empty.

    Attributes:
        missing: why the extension cannot be used, empty where it can; the first line is a sentence of its own, further
            lines are the compiler's words.
        torch: version of torch at run time.
        torch_target: oldest torch that the extension loads under; torch_headers: the one it was compiled against.
        compiler, flags: that built it.
        isa: best instruction set of this machine: scalar, avx2, avx512 or amx.
        cuda: what its CUDA kernels were built with and for, such as "nvcc 13.0, sm_80 sm_90+PTX".
        cuda_missing: why it has no CUDA kernels, in the form of ``missing``; empty where it has them.
    """

    missing: str
    torch: str
    torch_target: str = ""
    torch_headers: str = ""
    compiler: str = ""
    flags: str = ""
    isa: str = ""
    cuda: str = ""
    cuda_missing: str = "it was built without CUDA"

    @property
    def summary(self) -> str:
        """One line for a command's opening."""
        if self.missing:
            return f"native extension: not there, running on PyTorch alone ({self.missing.splitlines()[0]})"
        return f"native extension: {self.isa}, {self.compiler}, torch {self.torch_headers} -> {self.torch}"

    def __str__(self) -> str:
        if self.missing:
            return f"native extension: not there\ntorch: {self.torch}\nwhy: {self.missing}"
        return (
            f"native extension: loaded\ntorch: {self.torch}\nbuilt against torch: {self.torch_headers}"
            f"\nneeds torch: >= {self.torch_target}\ncompiler: {self.compiler}\nflags: {self.flags}\nisa: {self.isa}"
            f"\nCUDA kernels: {self.cuda or f'not there: {self.cuda_missing}'}"
        )


@cache
def native_report() -> NativeReport:
    """Load the extension, so that ``torch.ops.m3el_fast`` has its ops, and report; never raises for a missing one."""
    library = find_spec("m3el_fast._native")
    if library is None or library.origin is None:
        return _missing(_reason(_NOTE, _NEVER_BUILT))
    try:
        torch.ops.load_library(library.origin)
        info = import_module("m3el_fast._build_info")
    except (OSError, ImportError) as error:
        return _missing(f"{library.origin} does not load: {error}")
    interface = torch.ops.m3el_fast.native_abi_version()
    if interface != INTERFACE:
        return _missing(
            f"{library.origin} has interface {interface}, this checkout needs {INTERFACE}: install it again"
        )
    cuda = info.cuda()
    return NativeReport(
        missing="",
        torch=torch.__version__,
        torch_target=info.torch_target(),
        torch_headers=info.torch_headers(),
        compiler=info.compiler(),
        flags=info.flags(),
        isa=info.isa(),
        cuda=cuda,
        cuda_missing="" if cuda else _reason(_CUDA_NOTE, "it was built without them: install it again"),
    )


_NEVER_BUILT = "it was never built for this Python: run `pip install -e .` in the checkout, or `pip install` a wheel"


def _missing(why: str) -> NativeReport:
    return NativeReport(why, torch.__version__, cuda_missing=why)


def _reason(note: Path, otherwise: str) -> str:
    return note.read_text(encoding="utf-8").strip() if note.exists() else otherwise
