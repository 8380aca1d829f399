"""csrc/native_build.py: what it looks for, what it compiles, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from setuptools import Extension

ROOT = Path(__file__).parents[1]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("native_build", ROOT / "csrc/native_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolchain(build: ModuleType) -> None:
    if build.missing_tool():
        pytest.skip(build.missing_tool())


def test_finds_the_torch_that_runs_the_tests(build: ModuleType) -> None:
    root = build.find_torch()
    assert root == Path(torch.__file__).parent
    assert ".".join(map(str, build.torch_version(root))) == torch.__version__.partition("+")[0]


def test_torch_without_stable_abi_headers_is_passed_over(build: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    assert build.torch_version(tmp_path / "torch") == (0, 0, 0)


@pytest.mark.parametrize(
    ("tool", "torch_root", "expected"),
    [
        (None, None, ["torch>=2.11"]),
        (None, Path("torch"), []),
        ("no compiler", None, []),
    ],
    ids=["no-torch", "torch", "no-compiler"],
)
def test_fetches_torch_only_for_a_build_that_needs_it(
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tool: str | None,
    torch_root: Path | None,
    expected: list[str],
) -> None:
    monkeypatch.setattr(build, "missing_tool", lambda: tool)
    monkeypatch.setattr(build, "find_torch", lambda: torch_root)
    assert build.torch_requirement() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the platform is what is missing")
def test_missing_compiler_is_named(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent -m64")
    assert "/nonexistent -m64 not found" in build.missing_tool()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert "c++, g++ or clang++ not found" in build.missing_tool()


def test_only_isa_files_get_isa_flags(build: ModuleType) -> None:
    assert build.compile_flags("csrc/cpu/g2l.cpp", "x86_64") == []
    assert build.compile_flags("csrc/cpu/g2l_avx2.cpp", "x86_64") == ["-mavx2", "-mfma", "-mf16c"]
    assert "-mamx-bf16" in build.compile_flags("csrc/cpu/g2l_amx.cpp", "x86_64")
    assert build.compile_flags("csrc/cpu/g2l.cpp", "aarch64") == []
    assert build.compile_flags("csrc/cpu/g2l_avx2.cpp", "aarch64") is None


@pytest.mark.usefixtures("toolchain")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 instruction sets")
def test_ninja_compiles_each_file_with_its_own_flags(build: ModuleType, tmp_path: Path) -> None:
    macros = {"plain": "!defined(__AVX2__)", "k_avx2": "defined(__AVX2__) && !defined(__AVX512F__)"}
    macros |= {"k_avx512": "defined(__AVX512VL__) && !defined(__AMX_TILE__)", "k_amx": "defined(__AMX_BF16__)"}
    for name, macro in macros.items():
        (tmp_path / f"{name}.cpp").write_text(
            f"#if !({macro})\n#error wrong flags\n#endif\nint {name}() {{ return 1; }}"
        )
    extension = Extension("it", [str(tmp_path / f"{name}.cpp") for name in macros])
    output = tmp_path / "with space" / "it.so"
    build.write_ninja(tmp_path, [extension], [output], Path(torch.__file__).parent)
    build.run_ninja(tmp_path)
    assert output.read_bytes()[:4] == b"\x7fELF"


@pytest.mark.usefixtures("toolchain")
def test_pybind11_is_not_torchs_copy(build: ModuleType, tmp_path: Path) -> None:
    copy = tmp_path / "torch/include/pybind11/detail/common.h"
    copy.parent.mkdir(parents=True)
    copy.write_text("#error refuses the stable ABI\n")
    (tmp_path / "torch/lib").mkdir()
    (tmp_path / "torch/lib/libtorch_cpu.a").write_bytes(b"!<arch>\n")
    source = tmp_path / "it.cpp"
    source.write_text("#include <pybind11/detail/common.h>\n")
    build.write_ninja(tmp_path, [Extension("it", [str(source)])], [tmp_path / "it.so"], tmp_path / "torch")
    build.run_ninja(tmp_path)


@pytest.mark.usefixtures("toolchain")
def test_compiler_error_is_the_first_line_of_the_message(build: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "bad.cpp"
    source.write_text("int bad() { return nothing; }\n")
    build.write_ninja(tmp_path, [Extension("it", [str(source)])], [tmp_path / "it.so"], Path(torch.__file__).parent)
    with pytest.raises(build.BuildError) as caught:
        build.run_ninja(tmp_path)
    first, *rest = str(caught.value).splitlines()
    assert "failed" in first
    assert "'nothing'" in first.replace("\u2018", "'").replace("\u2019", "'")
    assert rest[0].startswith("FAILED: ")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("m3el_fast", "csrc", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("_*.so", "_*_missing.txt"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build_in_place(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    settings = {**os.environ, "CXX": "/nonexistent", "M3EL_BUILD_CUDA": "", **env}
    return subprocess.run(command, cwd=checkout, env=settings, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_build_without_compiler_succeeds_says_why_and_clears_what_was_there(checkout: Path) -> None:
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    stale = [checkout / "m3el_fast" / f"{name}{suffix}" for name in ("_native", "_build_info")]
    for path in stale:
        path.write_bytes(b"from an earlier build")
    done = build_in_place(checkout, M3EL_REQUIRE_NATIVE="")
    assert done.returncode == 0, done.stderr
    assert "NATIVE EXTENSION NOT BUILT" in done.stderr
    assert "/nonexistent" in (checkout / "m3el_fast/_native_missing.txt").read_text()
    assert not any(path.exists() for path in stale)


def test_build_that_requires_the_extension_fails_with_the_reason(checkout: Path) -> None:
    done = build_in_place(checkout, M3EL_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "M3EL_REQUIRE_NATIVE=1" in done.stderr
    assert "/nonexistent" in done.stderr
