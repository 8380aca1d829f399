"""The native part: loads the extension once and says what it is, or why it is not there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

INTERFACE = 3  # kInterface of csrc/native.cpp

_NOTE = Path(__file__).parents[1] / "_native_missing.txt"  # written by csrc/native_build.py


@dataclass(frozen=True)
class NativeReport:
    """What the native part says about itself; all but ``missing`` and ``torch`` are empty where it is missing.

    Attributes:
        missing: why the extension cannot be used, empty where it can; the first line is a sentence of its own, further
            lines are the compiler's words.
        torch: version of torch at run time.
        torch_target: oldest torch that the extension loads under; torch_headers: the one it was compiled against.
        compiler, flags: that built it.
        isa: best instruction set of this machine: scalar, avx2, avx512 or amx.
    """

    missing: str
    torch: str
    torch_target: str = ""
    torch_headers: str = ""
    compiler: str = ""
    flags: str = ""
    isa: str = ""

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
        )


@cache
def native_report() -> NativeReport:
    """Load the extension, so that ``torch.ops.m3el_fast`` has its ops, and report; never raises for a missing one."""
    library = find_spec("m3el_fast._native")
    if library is None or library.origin is None:
        return NativeReport(_why_missing(), torch.__version__)
    try:
        torch.ops.load_library(library.origin)
        info = import_module("m3el_fast._build_info")
    except (OSError, ImportError) as error:
        return NativeReport(f"{library.origin} does not load: {error}", torch.__version__)
    interface = torch.ops.m3el_fast.native_abi_version()
    if interface != INTERFACE:
        stale = f"{library.origin} has interface {interface}, this checkout needs {INTERFACE}: install it again"
        return NativeReport(stale, torch.__version__)
    return NativeReport(
        missing="",
        torch=torch.__version__,
        torch_target=info.torch_target(),
        torch_headers=info.torch_headers(),
        compiler=info.compiler(),
        flags=info.flags(),
        isa=info.isa(),
    )


def _why_missing() -> str:
    if _NOTE.exists():
        return _NOTE.read_text(encoding="utf-8").strip()
    return "it was never built for this Python: run `pip install -e .` in the checkout, or `pip install` a wheel"
