"""Builds CUDA sources as plain C++ on the host emulator, one shared library, and loads it.

    library = load(sorted(CUDA.glob("*.cu")), sorted(CUDA.glob("*_ops.cpp")))  # torch.ops.m3el_fast_host.<op>
    library.m3el_cuda_host_seed(7)  # order of threads and blocks in the launches from here on

The first seed is M3EL_CUDA_HOST_SEED in the environment of the process, else 0.
What is built stays in a folder of the system's temporary one, named by the hash of all that went into it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
CUDA = CSRC / "cuda"
sys.path.insert(0, str(CSRC))
from native_build import DEFINES, compiler, find_torch, torch_version  # noqa: E402

INCLUDE = [HERE, CUDA]
BASE = ["-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-DM3EL_CUDA_HOST"]
# before every access of a kernel comes a call, which hooks.cpp answers
KERNELS = ["-x", "c++", "-O1", "-fsanitize=thread,alignment,bounds", "-Wno-unknown-pragmas"]
KERNELS += ["-Werror=frame-larger-than=16384"]  # fibers have 68 KiB of stack, and nothing guards its end
RUNTIME = ["-O3", "-fno-strict-aliasing"]
DAYS_KEPT = 7


def folder() -> Path:
    path = Path(tempfile.gettempdir(), f"m3el_cuda_host_{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    if path.lstat().st_uid != os.getuid():  # a link of somebody else's would lead anywhere
        raise PermissionError(f"{path} belongs to somebody else: set TMPDIR to another folder")
    return path


def texts(source: Path) -> Iterator[str]:
    """A source file and the files of ours that it includes."""
    pending, seen = [source], {source}
    for path in pending:
        text = path.read_text()
        yield text
        for name in re.findall(r'^ *# *include "(.+)"', text, re.MULTILINE):
            found = [place / name for place in (path.parent, *INCLUDE) if (place / name).exists()][:1]
            pending += [new for new in found if new not in seen]
            seen.update(found)


@functools.cache
def compiler_version() -> str:
    return subprocess.run([*compiler(), "--version"], check=True, capture_output=True, text=True).stdout


class Edited(Exception):
    """Sources changed while they were compiled: what came of them is neither the old nor the new."""


def make(
    command: Sequence[str], suffix: str, contents: Sequence[str], unchanged: Callable[[], bool] = lambda: True
) -> Path:
    """The file that ``command -o file`` makes of ``contents``, which may be there already.

    Raises:
        RuntimeError: the compiler's words.
        Edited: ``unchanged`` says so after the compilation.
    """
    key = "\0".join([compiler_version(), *command, *contents])
    target = folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}{suffix}"
    with contextlib.suppress(FileNotFoundError):
        os.utime(target)
        return target
    partial = target.with_suffix(f".{os.getpid()}.tmp")  # other processes may build the same
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True, errors="replace")
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    if not unchanged():
        partial.unlink()
        raise Edited
    return partial.replace(target)


def remove_old() -> None:
    for path in folder().iterdir():
        with contextlib.suppress(FileNotFoundError):  # other processes do the same, and rename what they built
            if path.stat().st_mtime < time.time() - DAYS_KEPT * 86400:
                path.unlink()


def build(sources: Sequence[Path], bindings: Sequence[Path] = ()) -> Path:
    """A shared library of CUDA sources, the emulator and, where there are bindings, the ops that they register."""
    # The runtime first: of an inline function in several objects the linker keeps the first, and the runtime must not
    # get one with checks.
    units = [(path, RUNTIME) for path in sorted(HERE.glob("*.cpp")) if path.name != "library.cpp"]
    units += [(path, KERNELS) for path in sources]
    link = []
    version = ""
    if bindings:
        torch = find_torch()
        if torch is None:
            raise RuntimeError("no torch to build against")
        version = str(torch_version(torch))
        own = ["-O1", *DEFINES, "-isystem", str(torch / "include")]
        units += [(path, own) for path in [*bindings, HERE / "library.cpp"]]
        link = [f"-L{torch / 'lib'}", "-ltorch_cpu"]

    def compile_unit(unit: tuple[Path, list[str]], before: list[str]) -> str:
        path, flags = unit
        include = [f"-I{place}" for place in INCLUDE]
        command = [*compiler(), *BASE, *include, *flags, "-c", str(path)]
        return str(make(command, ".o", [*before, version], lambda: [*texts(path)] == before))

    def snapshot() -> list[list[str]]:
        return [[*texts(path)] for path, _ in units]

    remove_old()
    before = snapshot()
    try:
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_unit, units, before))
        if snapshot() != before:  # objects on both sides of a change to a header do not fit together
            raise Edited
    except Edited:
        return build(sources, bindings)
    return make([*compiler(), "-shared", "-Wl,-z,defs", *objects, *link], ".so", [])


@functools.cache
def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.m3el_cuda_host_seed.argtypes = [ctypes.c_uint64]
    library.m3el_cuda_host_seed.restype = None
    return library


def load(sources: Sequence[Path], bindings: Sequence[Path] = ()) -> ctypes.CDLL:
    """Builds and loads; bindings' ops are then in ``torch.ops.m3el_fast_host``: one such library a process."""
    return _open(build(sources, bindings))
