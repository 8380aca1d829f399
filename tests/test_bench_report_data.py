"""bench/report_data.py: what is read from results files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench.report_data import GPU_GROUPS, Run, load
from bench_results import BENCH, GPU, QUALITY, RANKING, RECALL, SERVING, entry, session, written
from m3el_fast.errors import InputError


def test_session_is_read(tmp_path: Path) -> None:
    run = load(written(tmp_path, RANKING))
    assert isinstance(run, Run)
    record = run.by_name()["ranking, m3el, avx512bf16"]
    assert (record.rate, record.spread, record.rounds, record.share) == (1_226_492.1, 0.02, 3, 1.126)
    assert record.peak == pytest.approx(23.7e6)
    assert record.ratios["a peer | of others"] == 7.2
    assert record.facts == {"p99 ms": 12.5}
    assert record.command == "pytest 'bench/test_planted.py::test[ranking, m3el, avx512bf16]' --benchmark"
    assert [r.is_peer for r in run.records] == [True] * 3 + [False] * 5
    assert run.machine["python"] == "3.11.7" and run.date == "2026-11-21T07:04:53"


def test_command_of_a_record_and_of_a_scale(tmp_path: Path) -> None:
    run = load(written(tmp_path, session(entry("a", 1.0, command="make it"), entry("b", 1.0), scale="million")))
    assert isinstance(run, Run)
    assert run.records[0].command == "make it"
    assert run.records[1].command == "pytest 'bench/test_planted.py::test[b]' --benchmark --scale million"
    assert run.command(["bench/test_planted.py"]) == "pytest bench/test_planted.py --benchmark --scale million"


def test_gpu_benchmarks_are_read(tmp_path: Path) -> None:
    run = load(written(tmp_path, GPU))
    assert isinstance(run, Run) and run.gpu
    eager, own = run.records
    assert eager.is_peer and own.ratios == {"ranks: eager": 4.0}
    assert own.bars == {"pairs/s": "1,000: met", "eager": "5: missed", "memory x eager": "20: met"}
    assert own.facts == {"memory x eager": 30.0, "torch.compile": "not measured: out of memory"}
    assert run.command([own.group]) == "pytest bench/test_gpu_scan.py --benchmark --scale paper"
    other = load(written(tmp_path, RANKING))
    assert isinstance(other, Run) and not other.gpu


def test_parts_of_the_gpu_benchmarks() -> None:
    assert sorted(GPU_GROUPS.values()) == sorted(f"bench/{path.name}" for path in BENCH.glob("test_gpu_*.py"))


def broken(*path: Any, value: Any = None) -> dict[str, Any]:
    """The session without a key, or with another value there."""
    data: Any = copy.deepcopy(RANKING)
    data["benchmarks"] = list(data["benchmarks"])
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "got"),
    [
        ([1], "got list"),
        ({"a": 1, "b": 2}, "got keys a, b"),
        (broken("machine_info", "m3el_fast"), "no 'm3el_fast'"),
        (broken("benchmarks", 0, "extra_info", "name"), "no 'name'"),
        (broken("benchmarks", 0, "extra_info", "pairs/s", value="fast"), "expected a finite number, got 'fast'"),
        (broken("benchmarks", 0, "extra_info", "spread", value=float("nan")), "expected a finite number, got nan"),
        (broken("benchmarks", 3, "extra_info", "bars", value={"peak MB": "met"}), "could not convert"),
        (session(entry("a", 1.0, scaling={"axis": "E", "points": [[1, 2]]})), "not enough values"),
        (session(entry("a", 1.0, scaling={"axis": "E", "points": [[0, 2, 3]]})), "sizes above 0"),
        ({**RECALL, "curve": []}, "candidates and seconds"),
        ({**QUALITY, "sample": {"full model": {"hits": {}, "mrr": 1.0}}}, "no '1'"),
    ],
)
def test_broken_files_are_refused_by_name(data: object, got: str, tmp_path: Path) -> None:
    path = written(tmp_path, data)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: expected a results file") and got in str(caught.value)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(InputError, match=r"x\.json: expected .*, got No such file"):
        load(path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"x\.json: expected .*, got no JSON"):
        load(path)


def test_a_load_without_one_client(tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    path.write_text(json.dumps({**SERVING, "load": SERVING["load"][1:]}))
    with pytest.raises(InputError, match="got expected one client in the first entry of the load"):
        load(path)
