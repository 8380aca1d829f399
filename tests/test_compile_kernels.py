"""Every failure that .ci/compile_kernels.py promises to see, on planted kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def outcome() -> subprocess.CompletedProcess[str]:
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, ".ci/compile_kernels.py", "planted_kernels"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": folders},
        capture_output=True,
        text=True,
    )


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
