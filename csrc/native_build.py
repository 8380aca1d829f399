"""How the native part is built: a PEP 517 backend around setuptools, and the ``build_ext`` command that runs ninja.

A machine without what the build needs still gets a working package: the reason goes into a file in the package,
``_native_missing.txt``, where ``m3el_fast.ops.build`` finds it. ``M3EL_REQUIRE_NATIVE=1`` makes it an error instead.
So with the CUDA kernels alone (cuda_build.py): ``_cuda_missing.txt``, and ``M3EL_BUILD_CUDA``.

Torch is no build requirement: the headers of the caller's own torch do (pip's isolation hides its packages, yet keeps
``sys.prefix``), and only where there is none does an isolated build fetch one.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Extension, build_meta
from setuptools.build_meta import *  # noqa: F403  (the backend's other hooks are setuptools' own)
from setuptools.command.build_ext import build_ext

import cuda_build
from cuda_build import CudaMissing, Toolkit

TARGET = (2, 11)  # oldest torch that the extension loads under
NOTE = "_native_missing.txt"

# An ISA file is csrc/cpu/<name>_<isa>.cpp; csrc/cpu/isa.h asks the CPU for exactly these features. It includes only
# C and intrinsics headers and keeps its own functions in an unnamed namespace: an inline function of the standard
# library compiled here could be the copy that the linker keeps for everybody.
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# GCC 12's own AVX-512 intrinsics trip its warning of uninitialised values
_QUIET = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
ISA_FLAGS = {
    "avx2": _AVX2,
    "avx512": [*_AVX512, *_QUIET],
    "avx512bf16": [*_AVX512, "-mavx512bf16", *_QUIET],
    "amx": [*_AVX512, "-mamx-tile", "-mamx-bf16", *_QUIET],
}

FLAGS = ["-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# TORCH_STABLE_ONLY: a header outside the stable ABI is a compile error.
DEFINES = [f"-DTORCH_TARGET_VERSION=0x{TARGET[0]:02x}{TARGET[1]:02x}000000000000", "-DTORCH_STABLE_ONLY"]

_KERNELS = [path for pattern in ("cpu/*.cpp", "cuda/*.cpp", "cuda/*.cu") for path in sorted(Path("csrc").glob(pattern))]
EXTENSIONS = [
    Extension("m3el_fast._native", ["csrc/native.cpp", *map(str, _KERNELS)]),
    Extension("m3el_fast._build_info", ["csrc/build_info.cpp"]),
]


class CudaBuild(NamedTuple):
    """What the CUDA part is compiled with and for (``cuda_build.targets``)."""

    toolkit: Toolkit
    codes: list[str]


class BuildError(Exception):
    """Why there is no native part: one line, then the compiler's words where there are any."""


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *torch_requirement()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *torch_requirement()]


def torch_requirement() -> list[str]:
    """Torch, where a build could use its headers and the caller has none."""
    return [f"torch>={TARGET[0]}.{TARGET[1]}"] if missing_tool() is None and find_torch() is None else []


def compiler() -> list[str]:
    """The C++ compiler's command: ``CXX``, or the first of the usual names on the path; empty where there is none."""
    given = shlex.split(os.environ.get("CXX", ""))
    candidates = [given] if given else [["c++"], ["g++"], ["clang++"]]
    return next((command for command in candidates if shutil.which(command[0])), [])


def missing_tool() -> str | None:
    """What this machine lacks for a native build, or None."""
    if sys.platform != "linux":
        return f"the native extension supports Linux, this is {sys.platform}"
    if not compiler():
        wanted = os.environ.get("CXX") or "c++, g++ or clang++"
        return f"no C++ compiler ({wanted} not found): install one, for example `apt-get install g++`"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h: install Python's development files, for example `apt-get install python3-dev`"
    return None


def torch_version(root: Path) -> tuple[int, int, int]:
    """Version of the torch whose package folder is ``root``; zeros where it has no stable ABI headers."""
    header = root / "include/torch/headeronly/version.h"
    if not header.exists():
        return 0, 0, 0
    found = dict(re.findall(r"#define TORCH_VERSION_(MAJOR|MINOR|PATCH) (\d+)", header.read_text()))
    return int(found["MAJOR"]), int(found["MINOR"]), int(found["PATCH"])


def package_folders() -> list[Path]:
    """Where Python packages are: the build's own path, then the caller's site-packages."""
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    caller = [sysconfig.get_path(name, vars=prefix) for prefix in ({}, base) for name in ("purelib", "platlib")]
    return [Path(folder or ".") for folder in [*sys.path, *caller]]


def find_torch() -> Path | None:
    """Package folder of the first torch that is new enough."""
    roots = (folder / "torch" for folder in package_folders())
    return next((root for root in roots if torch_version(root)[:2] >= TARGET), None)


def find_cuda() -> CudaBuild:
    """How to build the CUDA part. Raises CudaMissing where it is forbidden or cannot be built."""
    if cuda_build.forced() is False:
        raise CudaMissing(f"built with M3EL_BUILD_CUDA=0: unset it, {cuda_build.AGAIN}")
    toolkit = cuda_build.find_toolkit(package_folders())
    return CudaBuild(toolkit, cuda_build.targets(toolkit))


def compile_flags(source: str, machine: str = platform.machine()) -> list[str] | None:
    """Flags of one source file beyond those that all share; None where the file is not for this machine."""
    isa = Path(source).stem.rpartition("_")[2]
    if isa not in ISA_FLAGS:
        return []
    return ISA_FLAGS[isa] if machine == "x86_64" else None


def write_ninja(
    folder: Path, extensions: Sequence[Extension], outputs: Sequence[Path], torch: Path, cuda: CudaBuild | None = None
) -> None:
    """Write ``folder/build.ninja``: each source compiled with its own flags, one library per extension. Without
    ``cuda``, sources in a folder of that name are left out."""
    import ninja
    import pybind11

    flags = [*FLAGS, *DEFINES, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    # torch 2.11 has a copy of pybind11 that refuses the stable ABI
    system = [pybind11.get_include(), torch / "include", sysconfig.get_path("include")]
    everything = [*flags, *(word for path in system for word in ("-isystem", str(path)))]
    build = {
        "M3EL_FLAGS": shlex.join(flags),
        "M3EL_TORCH_HEADERS": ".".join(map(str, torch_version(torch))),
        "M3EL_CUDA": cuda_build.describe(*cuda) if cuda else "",
    }
    quoted = [f'-D{name}="{value}"' for name, value in build.items()]
    link = [f"-L{torch / 'lib'}", "-Wl,--as-needed", "-ltorch_cpu"]
    link += cuda_build.link_flags(cuda.toolkit) if cuda else []
    link += shlex.split(os.environ.get("LDFLAGS", ""))

    def shell(words: Sequence[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    with open(folder / "build.ninja", "w", encoding="utf-8") as file:
        writer = ninja.Writer(file, width=10_000)
        cxx = shell(compiler())
        compile_one = f"{cxx} -MMD -MF $out.d {shell(everything)} $flags -c $in -o $out"
        writer.rule("cxx", compile_one, depfile="$out.d", deps="gcc")
        if cuda:
            nvcc = shell(cuda_build.compile_command(*cuda, compiler()))
            writer.rule("nvcc", f"{nvcc} -MD -MF $out.d $flags -c $in -o $out", depfile="$out.d", deps="gcc")
        writer.rule("link", f"{cxx} -shared -o $out $in {shell(link)}")
        for extension, output in zip(extensions, outputs, strict=True):
            objects = []
            for source in map(Path, extension.sources):
                own = compile_flags(str(source))
                if own is None or (source.parent.name == "cuda" and cuda is None):
                    continue
                own = [*own, *(quoted if source.stem == "build_info" else [])]
                rule = "nvcc" if source.suffix == ".cu" else "cxx"
                objects.append(f"{source}.o")
                writer.build(objects[-1], rule, str(source.resolve()), variables={"flags": shell(own)})
            writer.build(str(output.resolve()), "link", objects)


def run_ninja(folder: Path) -> None:
    """Build all that ``folder/build.ninja`` names. Raises BuildError with the compiler's words."""
    import ninja

    command = [os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(done.stdout)
    if done.returncode:
        lines = done.stdout.splitlines()
        failed = next((number for number, line in enumerate(lines) if line.startswith("FAILED:")), len(lines))
        tool, *said = lines[failed + 1 :] or ["ninja", lines[-1]]
        first = next((line for line in said if re.search(r"\b(error|fatal)\b", line)), said[0] if said else "")
        words = "\n".join(lines[failed:] or lines)  # not of what went well before
        raise BuildError(f"the compiler `{tool.split()[0]}` failed: {first}\n{words}")


class BuildNative(build_ext):
    """``build_ext`` with ninja and a note in place of what could not be built."""

    def build_extensions(self) -> None:
        outputs = [Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions]
        notes = self._notes(Path(self.build_lib))
        required = [name for name in ("M3EL_REQUIRE_NATIVE", "M3EL_BUILD_CUDA") if os.environ.get(name) == "1"]
        notes[NOTE].parent.mkdir(parents=True, exist_ok=True)
        for stale in [*notes.values(), *outputs]:
            stale.unlink(missing_ok=True)
        try:
            self._build(outputs, notes[cuda_build.NOTE])
        except BuildError as error:
            if required:
                asked = " and ".join(f"{name}=1" for name in required)
                raise SystemExit(f"{asked}, but the native extension was not built: {error}") from None
            _write_note(notes[NOTE], "NATIVE EXTENSION", error)
        for extension, output in zip(self.extensions, outputs, strict=True):
            extension.optional = not output.exists()

    def copy_extensions_to_source(self) -> None:
        """An editable build: what is there and what is not goes to the source tree, over what an earlier build left."""
        for extension in self.extensions:
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()
        ours = self._notes(Path())
        for name, built in self._notes(Path(self.build_lib)).items():
            if built.exists():
                shutil.copyfile(built, ours[name])
            else:
                ours[name].unlink(missing_ok=True)

    def _build(self, outputs: Sequence[Path], note: Path) -> None:
        """Both parts, or the CPU part and a note of what keeps the CUDA part from being built."""
        forced = cuda_build.forced()
        obstacle = missing_tool()
        torch = find_torch()
        if obstacle or torch is None:
            raise BuildError(obstacle or f"no torch >= {TARGET[0]}.{TARGET[1]} to build against")
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run(folder, outputs, torch, find_cuda())
        except (CudaMissing, BuildError) as reason:
            if forced:
                raise BuildError(reason) from None
            self._run(folder, outputs, torch, None)  # where this fails, too, it was not for CUDA
            _write_note(note, "CUDA KERNELS", reason)

    def _run(self, folder: Path, outputs: Sequence[Path], torch: Path, cuda: CudaBuild | None) -> None:
        write_ninja(folder, self.extensions, outputs, torch, cuda)
        try:
            run_ninja(folder)
        except BuildError:
            for output in outputs:
                output.unlink(missing_ok=True)
            raise

    @staticmethod
    def _notes(root: Path) -> dict[str, Path]:
        return {name: root / "m3el_fast" / name for name in (NOTE, cuda_build.NOTE)}


def _write_note(path: Path, what: str, reason: Exception) -> None:
    path.write_text(f"{reason}\n", encoding="utf-8")
    print(f"m3el_fast: {what} NOT BUILT, the package works without: {reason}", file=sys.stderr)
