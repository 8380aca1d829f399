"""bench/compare.py: what counts as a regression."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import compare
from bench.compare import Comparison
from bench.report_data import Record
from m3el_fast.errors import InputError

MACHINE = {"cpu": "A", "cores": 2, "isa": ["avx2"], "memory_gb": 25, "threads": 2, "torch": "2.13"}
RECORD = Record("planted", "pairs", "file", "", rate=1000.0, median=1.0, rounds=3, spread=0.02, peak=100e6)


def slowed(factor: float, **changes: Any) -> Record:
    return replace(RECORD, **({"rate": 1000 / factor, "median": factor} | changes))


@pytest.mark.parametrize(
    ("factor", "spread", "tolerance", "slower"),
    [
        (1.06, 0.02, 0.05, False),
        (1.08, 0.02, 0.05, True),
        (1.08, 0.04, 0.05, False),  # within the larger spread
        (1.03, 0.01, 0.0, True),
        (1.01, 0.0, 0.0, False),  # the old spread counts, too
        (0.5, 0.02, 0.05, False),
    ],
)
def test_slower_beyond_spread_and_tolerance(factor: float, spread: float, tolerance: float, slower: bool) -> None:
    found = Comparison(RECORD, slowed(factor, spread=spread), tolerance)
    assert found.ratio == pytest.approx(factor)
    assert found.slower is slower
    assert ("SLOWER" in found.text(judged=True)) is slower and "SLOWER" not in found.text(judged=False)


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (slowed(3.0, rounds=1), "one round, no spread"),
        (slowed(3.0, rate=None), "not measured"),
        (slowed(3.0, unit="steps"), "other work: 1,000 pairs, then 1,000 steps"),
        (slowed(3.0, median=30.0), "other work: 1,000 pairs, then 10,000 pairs"),
    ],
)
def test_what_is_not_judged(new: Record, why: str) -> None:
    found = Comparison(RECORD, new, 0.05)
    assert found.incomparable == why and not found.slower
    assert f"not judged ({why})" in found.text(judged=True)


def test_more_memory_beyond_noise() -> None:
    assert not Comparison(RECORD, replace(RECORD, peak=112e6), 0.05).more_memory
    assert Comparison(RECORD, replace(RECORD, peak=114e6), 0.05).more_memory
    assert "MORE MEMORY" in Comparison(RECORD, replace(RECORD, peak=114e6), 0.05).text(judged=True)
    assert not Comparison(RECORD, replace(RECORD, peak=None), 0.05).more_memory
    assert not Comparison(replace(RECORD, peak=2e6), replace(RECORD, peak=9e6), 0.05).more_memory
    assert not Comparison(RECORD, replace(RECORD, peak=500e6, median=9.0), 0.05).more_memory  # on other work


def session(folder: Path, name: str, seconds: dict[str, float], **machine: Any) -> Path:
    entries = [
        {
            "fullname": f"bench/test_planted.py::{key}",
            "extra_info": {
                "name": key,
                "unit": "pairs",
                "pairs/s": 10 / value,
                "spread": 0.01,
                "rounds": 3,
                "bars": {},
            },
            "stats": {"median": value},
        }
        for key, value in seconds.items()
    ]
    info = {"m3el_fast": {**MACHINE, **machine}, "python_version": "3.11"}
    path = folder / name
    path.write_text(
        json.dumps({"machine_info": info, "benchmarks": entries, "datetime": "2026-11-21T00:00:00", "version": "5"})
    )
    return path


def test_regressions_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = session(tmp_path, "old.json", {"same": 1.0, "slow": 1.0, "gone": 1.0})
    new = session(tmp_path, "new.json", {"same": 1.01, "slow": 1.5, "come": 1.0})
    with pytest.raises(SystemExit) as ended:
        compare.main([str(old), str(new)])
    text = capsys.readouterr().out
    assert ended.value.code == 1
    assert "time x 1.500, SLOWER than x 1.060" in text and text.count("SLOWER") == 1
    assert "only in old.json: gone" in text and "only in new.json: come" in text
    assert "2 compared, 1 regressions" in text
    compare.main([str(old), str(new), "--tolerance", "0.6"])
    assert "2 compared, 0 regressions" in capsys.readouterr().out


def test_different_machines_are_said_and_nothing_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = session(tmp_path, "old.json", {"slow": 1.0})
    compare.main(
        [str(old), str(session(tmp_path, "new.json", {"slow": 9.0}, cpu="B", threads=1, gpu="G", torch="2.14"))]
    )
    text = capsys.readouterr().out
    assert "DIFFERENT MACHINES" in text and "cpu: A -> B" in text and "threads: 2 -> 1" in text
    assert "    gpu: None -> G" in text
    assert "other torch: 2.13 -> 2.14" in text
    assert "time x 9.000" in text and "SLOWER" not in text and "0 regressions" in text


def test_other_software_is_said_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = session(tmp_path, "old.json", {"slow": 1.0})
    with pytest.raises(SystemExit):
        compare.main([str(old), str(session(tmp_path, "new.json", {"slow": 9.0}, torch="2.14"))])
    text = capsys.readouterr().out
    assert "other torch: 2.13 -> 2.14" in text and "DIFFERENT" not in text


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recall.json"
    path.write_text(json.dumps({"machine": MACHINE, "data": "d", "split": "test", "mentions": 1, "entities": 1,
                                "curve": [{"candidates": 1, "seconds": 1.0}]}))  # fmt: skip
    with pytest.raises(InputError, match=r"recall\.json: expected a results file of pytest-benchmark, got"):
        compare.main([str(path), str(path)])
