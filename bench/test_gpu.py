"""The GPU benchmarks without a GPU: the model of every kernel holds, and the script's code runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=os.environ | own | environment, capture_output=True, text=True)


def test_kernels_model_within_their_goals() -> None:
    done = _run(sys.executable, "-m", "bench.roofline", TRITON_INTERPRET="0")
    print(done.stdout)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU: bench/gpu_check.sh")
def test_table_in_the_interpreter(tmp_path: Path) -> None:
    done = _run(
        sys.executable, "-m", "bench.gpu_table", "--scale", "tiny", "--out", str(tmp_path), TRITON_INTERPRET="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not measured" in done.stdout
    assert " ms " not in done.stdout
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".txt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_script_says_that_there_is_no_gpu() -> None:
    done = _run("bash", "bench/gpu_check.sh")
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
