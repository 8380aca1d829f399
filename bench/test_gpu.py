"""The GPU benchmarks without a GPU: the model of every kernel holds, and their code gives right results."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.report_data import GPU_GROUPS

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=os.environ | own | environment, capture_output=True, text=True)


def test_kernels_model_within_their_goals() -> None:
    done = _run(sys.executable, "-m", "bench.roofline", TRITON_INTERPRET="0")
    print(done.stdout)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU")
def test_benchmarks_in_the_interpreter(tmp_path: Path) -> None:
    """Every part runs, and nothing but torch.compile is left out; times are refused."""
    files = [str(ROOT / group) for group in GPU_GROUPS.values()]
    results = tmp_path / "results.json"
    done = _pytest(*files, f"--benchmark-json={results}")
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = re.findall(r"^(PASSED|SKIPPED)(?: \[\d+\])? (.+)$", done.stdout, re.MULTILINE)
    passed = [what for outcome, what in outcomes if outcome == "PASSED"]
    skipped = [what for outcome, what in outcomes if outcome == "SKIPPED"]
    for group in GPU_GROUPS.values():
        assert any(what.startswith(group) and what.endswith("-ours]") for what in passed), group
    assert skipped and all("torch.compile takes" in what for what in skipped)
    assert not results.exists()

    done = _pytest(files[0], "--benchmark", "--scale", "tiny", f"--benchmark-json={results}")
    assert "not timed" in done.stdout and "passed" not in done.stdout
    assert not results.exists()


def _pytest(*options: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *options)
    return _run(*command, TRITON_INTERPRET="1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_script_says_that_there_is_no_gpu() -> None:
    done = _run("bash", "bench/gpu_check.sh")
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr


def test_script_measures_each_part_into_a_file_of_its_own(tmp_path: Path) -> None:
    """With a Python that has everything, does nothing, and writes down how it was called."""
    python, log = tmp_path / "python3", tmp_path / "log"
    python.write_text(f'#!/bin/sh\necho "$@" >>{log}\ncase "$*" in *get_device_name*) echo planted-gpu ;; esac\n')
    python.chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
    for asked, expected in (((), GPU_GROUPS), (("scan", "topk"), ("scan", "topk"))):
        log.unlink(missing_ok=True)
        done = _run("bash", "bench/gpu_check.sh", "table", *asked, **own)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line for line in log.read_text().splitlines() if "--benchmark" in line]
        assert len(lines) == len(expected)
        for part in expected:
            [line] = [line for line in lines if GPU_GROUPS[part] in line]
            assert "--benchmark --scale paper --benchmark-json=" in line
            assert re.search(rf"{tmp_path}/out/gpu-\d{{4}}-\d\d-\d\d-planted-gpu-{part}\.json$", line)
    for asked in (("table", "nothing"), ("tests", "scan")):
        done = _run("bash", "bench/gpu_check.sh", *asked, **own)
        assert done.returncode == 2 and "expected parts of the table" in done.stderr
