"""Every failure that .ci/compile_kernels.py promises to see, on planted kernels."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cuda_build
from native_build import package_folders

pytest.importorskip("triton")  # which also has the disassembler

ROOT = Path(__file__).parents[1]


def compile_kernels(*names: str, **env: str) -> subprocess.CompletedProcess[str]:
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, ".ci/compile_kernels.py", *names]
    settings = {**os.environ, "PYTHONPATH": folders, **env}
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)


@pytest.fixture(scope="module")
def outcome() -> subprocess.CompletedProcess[str]:
    return compile_kernels("planted_kernels")


@pytest.mark.parametrize(
    ("where", "architectures", "what"),
    [
        ("product_kernel, spills", (80, 90, 100), "bytes of spills a thread, at most 0 allowed"),
        ("product_kernel, too much shared memory", (80, 90, 100), "bytes of shared memory, the chip has"),
        ("product_kernel, 16 rows", (90,), "expected every product to be a warpgroup's (HGMMA), got HMMA"),
        ("double_kernel, no products", (80, 90, 100), "no tensor-core instruction"),
        ("double_kernel, does not compile", (80, 90, 100), "does not compile: arange's range must be a power of 2"),
    ],
)
def test_fault_is_reported_and_nothing_else(
    where: str, architectures: tuple[int, ...], what: str, outcome: subprocess.CompletedProcess[str]
) -> None:
    lines = [line for line in outcome.stderr.splitlines() if line.startswith(f"{where}, ")]
    assert [line.partition(": ")[0] for line in lines] == [f"{where}, sm_{arch}" for arch in architectures]
    assert all(what in line for line in lines)


def test_kernel_without_a_case_is_reported(outcome: subprocess.CompletedProcess[str]) -> None:
    lines = [line for line in outcome.stderr.splitlines() if "no case of COMPILE_CASES" in line]
    assert lines == ["planted_kernels: no case of COMPILE_CASES compiles forgotten_kernel"]  # and not _twice


def test_sound_kernel_passes_beside_failures(outcome: subprocess.CompletedProcess[str]) -> None:
    assert outcome.returncode == 1
    assert "product_kernel, sound" not in outcome.stderr
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("product_kernel") and "sound" in line]
    rows = [line.split() for line in lines if "sizes of 1" not in line]
    assert len(lines) == len(rows) + 1
    assert [row[2] for row in rows] == ["sm_80", "sm_90", "sm_100"]
    assert [row[-1].partition(":")[0] for row in rows] == ["HMMA", "HGMMA", "UTCHMMA"]


@pytest.fixture(scope="module")
def cuda_outcome() -> subprocess.CompletedProcess[str]:
    try:
        cuda_build.find_toolkit(package_folders())
    except cuda_build.CudaMissing as missing:
        pytest.skip(str(missing))
    return compile_kernels("tests/planted_kernels.cu")


ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        ("spilling_kernel", "bytes of spills, a stack frame of"),
        ("indexed_kernel", "0 bytes of spills, a stack frame of 64 bytes"),
        ("narrow_kernel", "no tensor-core instruction"),
        ("narrow_kernel", "no 16-byte load from global memory"),
    ],
)
def test_cuda_fault_is_reported(cuda_outcome: subprocess.CompletedProcess[str], kernel: str, what: str) -> None:
    lines = [line.partition(": ") for line in cuda_outcome.stderr.splitlines() if what in line]
    mine = [where for where, _, _ in lines if where.startswith(kernel)]
    assert mine == [f"{kernel}, {arch}" for arch in ARCHITECTURES]


def test_missing_and_meaningless_cuda_claims_are_reported(
    cuda_outcome: subprocess.CompletedProcess[str],
) -> None:
    lines = cuda_outcome.stderr.splitlines()
    assert sum(line.startswith("planted_kernels.cu, misread_kernel: expected 'tensor cores'") for line in lines) == 1
    assert sum(line.startswith("forgotten_kernel: nothing is said of its machine code") for line in lines) == 1
    assert sum(line.startswith("removed_kernel: its machine code is spoken of") for line in lines) == 1


def test_sound_cuda_kernel_passes_beside_failures(cuda_outcome: subprocess.CompletedProcess[str]) -> None:
    assert cuda_outcome.returncode == 1
    assert "sound_kernel" not in cuda_outcome.stderr
    rows = [line.split() for line in cuda_outcome.stdout.splitlines() if line.startswith("sound_kernel")]
    assert [row[1:3] for row in rows] == [["<4>", arch] for arch in ARCHITECTURES]
    assert all(row[4:] == ["0", "0", "HMMA:4", "LDG.128:4"] for row in rows)


def test_cuda_file_that_does_not_compile_is_reported(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin/nvcc"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libcudart_static.a").touch()
    nvcc.parent.mkdir()
    nvcc.write_text(
        f"#!/bin/sh\necho 'release 13.0'\necho '#$ TOP={tmp_path}'\necho 'x.cu(1): error: planted' >&2\nexit 2\n"
    )
    nvcc.chmod(0o755)
    done = compile_kernels("tests/planted_kernels.cu", CUDA_HOME=str(tmp_path))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "does not compile" in line]
    assert lines == [f"planted_kernels.cu, {a}: does not compile: x.cu(1): error: planted" for a in ARCHITECTURES]


def test_missing_nvcc_is_a_failure_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    cuda_kernels = importlib.import_module("cuda_kernels")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(cuda_kernels, "package_folders", list)
    monkeypatch.setattr(cuda_build, "USUAL", Path("/nonexistent"))
    failures = cuda_kernels.compile_files([ROOT / "tests/planted_kernels.cu"], [90], "")
    assert len(failures) == 1
    assert "no nvcc" in failures[0]
    assert "pip install" in failures[0]
