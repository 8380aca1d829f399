"""bench/gpu_timing.py: what a session on a GPU measures and records, on a planted one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report_data import Run, load

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What pytest printed, and the results file."""
    results = tmp_path_factory.mktemp("gpu") / "results.json"
    plugins = ("no:cacheprovider", "pytest_benchmark.plugin", "fake_gpu", "bench.conftest")
    command = [sys.executable, "-m", "pytest", *(word for name in plugins for word in ("-p", name))]
    command += ["-rA", str(ROOT / "tests" / "planted_gpu_benchmark.py")]
    command += ["--benchmark", "--scale", "tiny", f"--benchmark-json={results}"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "0"}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}  # of plugins that are not loaded
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr  # planted: a wrong result, and an interrupt at the end
    return done.stdout, results


def test_times_ratios_and_bars(session: tuple[str, Path]) -> None:
    run = load(session[1])
    assert isinstance(run, Run)
    peer, short = run.by_name()["short: eager"], run.by_name()["short"]
    assert peer.is_peer and not short.is_peer
    assert (short.median, short.rounds, short.spread) == (pytest.approx(1e-5), 100, pytest.approx(0.0, abs=1e-6))
    assert short.rate == pytest.approx(1e7) and peer.rate == pytest.approx(2.5e6)
    assert short.ratios == {"short: eager": pytest.approx(4.0)}
    assert (peer.peak, short.peak) == (3_000_000, 100_000)
    assert short.facts["memory x eager"] == 30.0
    assert short.share == pytest.approx(0.5) and peer.share is None
    assert short.facts["error"] == 1e-6
    assert short.bars == {
        "eager": "5: missed",
        "memory x eager": "20: met",
        "share of limit": "0.4: met",
        "pairs/s": "1: met",
    }
    assert not peer.bars
    assert run.machine["gpu"] == "Planted GPU, 7 multiprocessors, 8 GB"


def test_peers_that_did_not_run_are_noted(session: tuple[str, Path]) -> None:
    """And a slice is compared per item, and not by memory."""
    printed, results = session
    run = load(results)
    assert isinstance(run, Run)
    long = run.by_name()["long"]
    assert set(run.by_name()) == {"long: eager, the paper's form", "long", "short: eager", "short", "wrong: eager"}
    assert long.facts["eager"] == "not measured: out of memory"
    assert long.facts["torch.compile"] == "not measured: failed: RuntimeError: no such luck"
    assert long.ratios == {"long: eager, the paper's form": pytest.approx(10.0)}
    assert not any(key.startswith("memory x") for key in long.facts)
    assert long.bars["eager"] == "5: not measured" and long.bars["memory x eager"] == "20: not measured"
    assert long.rounds == 3
    assert "long: eager: out of memory" in printed
    assert "long: torch.compile: failed: RuntimeError: no such luck" in printed


def test_wrong_result_is_not_timed(session: tuple[str, Path]) -> None:
    printed, _ = session
    assert "AssertionError: planted" in printed
    assert "1 failed, 6 passed, 2 skipped" in printed


def test_results_file_has_no_single_times(session: tuple[str, Path]) -> None:
    entries = json.loads(session[1].read_text())["benchmarks"]
    assert entries and all("data" not in entry["stats"] for entry in entries)


def test_what_was_interrupted_is_left_out(session: tuple[str, Path]) -> None:
    """The rest stands in the file, which can be read."""
    printed, results = session
    assert "KeyboardInterrupt" in printed and "test_cut_off" in printed  # it has times
    assert "test_cut_off" not in results.read_text()
    assert isinstance(load(results), Run)


def test_work_is_counted_per_item(session: tuple[str, Path]) -> None:
    for entry in json.loads(session[1].read_text())["benchmarks"]:
        assert (entry["extra_info"]["flop"], entry["extra_info"]["moved"]) == (50.0, 10.0)
