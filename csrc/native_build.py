"""How the native part is built: a PEP 517 backend around setuptools, and the ``build_ext`` command that runs ninja.

A machine without what the build needs still gets a working package: the reason goes into a file in the package,
``_native_missing.txt``, where ``m3el_fast.ops.build`` finds it. ``M3EL_REQUIRE_NATIVE=1`` makes it an error instead.

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
from typing import Any

from setuptools import Extension, build_meta
from setuptools.build_meta import *  # noqa: F403  (the backend's other hooks are setuptools' own)
from setuptools.command.build_ext import build_ext

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

EXTENSIONS = [
    Extension("m3el_fast._native", ["csrc/native.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]),
    Extension("m3el_fast._build_info", ["csrc/build_info.cpp"]),
]


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


def find_torch() -> Path | None:
    """Package folder of the first torch that is new enough: the build's own path, then the caller's site-packages."""
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    caller = [sysconfig.get_path(name, vars=prefix) for prefix in ({}, base) for name in ("purelib", "platlib")]
    roots = (Path(folder or ".", "torch") for folder in [*sys.path, *caller])
    return next((root for root in roots if torch_version(root)[:2] >= TARGET), None)


def compile_flags(source: str, machine: str = platform.machine()) -> list[str] | None:
    """Flags of one source file beyond those that all share; None where the file is not for this machine."""
    isa = Path(source).stem.rpartition("_")[2]
    if isa not in ISA_FLAGS:
        return []
    return ISA_FLAGS[isa] if machine == "x86_64" else None


def write_ninja(folder: Path, extensions: Sequence[Extension], outputs: Sequence[Path], torch: Path) -> None:
    """Write ``folder/build.ninja``: each source compiled with its own flags, one library per extension."""
    import ninja
    import pybind11

    version = ".".join(map(str, torch_version(torch)))
    flags = [*FLAGS, *DEFINES, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    system = [torch / "include", pybind11.get_include(), sysconfig.get_path("include")]
    build = {"M3EL_FLAGS": shlex.join(flags), "M3EL_TORCH_HEADERS": version}
    quoted = [f'-D{name}="{value}"' for name, value in build.items()]
    everything = [*flags, *quoted, *(word for path in system for word in ("-isystem", str(path)))]
    link = [f"-L{torch / 'lib'}", "-Wl,--as-needed", "-ltorch_cpu", *shlex.split(os.environ.get("LDFLAGS", ""))]

    def shell(words: Sequence[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    with open(folder / "build.ninja", "w", encoding="utf-8") as file:
        writer = ninja.Writer(file, width=10_000)
        cxx = shell(compiler())
        compile_one = f"{cxx} -MMD -MF $out.d {shell(everything)} $flags -c $in -o $out"
        writer.rule("cxx", compile_one, depfile="$out.d", deps="gcc")
        writer.rule("link", f"{cxx} -shared -o $out $in {shell(link)}")
        for extension, output in zip(extensions, outputs, strict=True):
            objects = []
            for source in extension.sources:
                own = compile_flags(source)
                if own is not None:
                    objects.append(f"{source}.o")
                    writer.build(objects[-1], "cxx", str(Path(source).resolve()), variables={"flags": shell(own)})
            writer.build(str(output.resolve()), "link", objects)


def run_ninja(folder: Path) -> None:
    """Build all that ``folder/build.ninja`` names. Raises BuildError with the compiler's words."""
    import ninja

    command = [os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(done.stdout)
    if done.returncode:
        lines = done.stdout.splitlines()
        first = next((line for line in lines if "error:" in line), lines[-1])
        raise BuildError(f"the C++ compiler `{shlex.join(compiler())}` failed: {first}\n{done.stdout}")


class BuildNative(build_ext):
    """``build_ext`` with ninja and a note in place of what could not be built."""

    def build_extensions(self) -> None:
        outputs = [Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions]
        note = self._note(Path(self.build_lib))
        required = os.environ.get("M3EL_REQUIRE_NATIVE") == "1"
        note.parent.mkdir(parents=True, exist_ok=True)
        for stale in [note, *outputs]:
            stale.unlink(missing_ok=True)
        try:
            self._build(outputs)
        except BuildError as error:
            if required:
                raise SystemExit(f"M3EL_REQUIRE_NATIVE=1, but the native extension was not built: {error}") from None
            note.write_text(f"{error}\n", encoding="utf-8")
            print(f"m3el_fast: NATIVE EXTENSION NOT BUILT, the package works without it: {error}", file=sys.stderr)
        for extension, output in zip(self.extensions, outputs, strict=True):
            extension.optional = not output.exists()

    def copy_extensions_to_source(self) -> None:
        """An editable build: what is there and what is not goes to the source tree, over what an earlier build left."""
        for extension in self.extensions:
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        super().copy_extensions_to_source()
        built, ours = self._note(Path(self.build_lib)), self._note(Path())
        if built.exists():
            shutil.copyfile(built, ours)
        else:
            ours.unlink(missing_ok=True)

    def _build(self, outputs: Sequence[Path]) -> None:
        obstacle = missing_tool()
        torch = find_torch()
        if obstacle or torch is None:
            raise BuildError(obstacle or f"no torch >= {TARGET[0]}.{TARGET[1]} to build against")
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        write_ninja(folder, self.extensions, outputs, torch)
        try:
            run_ninja(folder)
        except BuildError:
            for output in outputs:
                output.unlink(missing_ok=True)
            raise

    @staticmethod
    def _note(root: Path) -> Path:
        return root / "m3el_fast" / NOTE
