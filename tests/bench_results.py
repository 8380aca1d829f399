"""Planted results files of benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MACHINE = {"cpu": "Planted & Sons", "cores": 2, "isa": ["avx2"], "memory_gb": 25, "threads": 2, "torch": "2.13.0"}
BENCH = Path(__file__).resolve().parents[1] / "bench"
EVIL = "<script>alert('x')</script>"

SERVING: dict[str, Any] = {
    "machine": MACHINE,
    "index": "planted",
    "entities": 18_880,
    "candidates": 100,
    "load": [
        {"clients": 1, "errors": 0, "requests/s": 106.9, "p50 ms": 9.24, "p99 ms": 12.7},
        {"clients": 8, "errors": 0, "requests/s": 349.3, "p50 ms": 22.4, "p99 ms": 31.3},
    ],
}


def entry(name: str, rate: float | None, **info: Any) -> dict[str, Any]:
    known = {} if rate is None else {"pairs/s": rate, "spread": 0.02, "rounds": 3}
    return {
        "fullname": f"bench/test_planted.py::test[{name}]",
        "extra_info": {"name": name, "unit": "pairs", "bars": {}, **known, **info},
        "stats": None if rate is None else {"median": 1000 / rate},
    }


def session(*entries: dict[str, Any], **info: Any) -> dict[str, Any]:
    machine = {"m3el_fast": MACHINE, "python_version": "3.11.7", **info}
    return {
        "machine_info": machine,
        "benchmarks": entries,
        "datetime": "2026-11-21T07:04:53.2+00:00",
        "version": "5.3.1",
    }


RANKING = session(
    entry("released eager, tuned malloc", 38_936.0),
    entry("released eager, default malloc", 21_464.7, **{"peak MB": 207.6}),
    entry("a peer | of others", 170_360.4),
    entry(
        "ranking, m3el, avx512bf16",
        1_226_492.1,
        **{
            "x released eager, tuned malloc": 31.5,
            "x released eager, default malloc": 57.1,
            "x a peer | of others": 7.2,
        },
        **{"share of limit": 1.126, "peak MB": 23.7, "p99 ms": 12.5},
        bars={"a peer | of others": "2.5: met", "peak MB": "20: missed", "share of limit": "0.6: met"},
    ),
    entry("ranking, m3el, avx2", 324_088.4),
    entry("ranking, m3el, scalar", 9_000.0),
    entry("ranking, mimic, avx512bf16", 2_252_885.8),
    entry(EVIL, None, bars={"share of limit": "0.7: not measured"}),
)
SCALING = {"axis": "E", "points": [[1000, 0.01, 1e6], [10_000, 0.1, None], [100_000, None, 3e6]], "exponent": 0.985}
RECALL = {
    "machine": {**MACHINE, "threads": 1},
    "data": EVIL,
    "split": "test",
    "mentions": 5169,
    "entities": 18_880,
    "curve": [
        {"candidates": n, "recall of the best 1": 1.0, "recall of the best 10": 0.81, "hits@1": 0.8, "seconds": s}
        for n, s in ((18_880, 40.2), (10, 1.6), (100, 2.5))
    ],
}
QUALITY = {
    "machine": "two cores",
    "date": "2026-11-21",
    "split": "test",
    "sample": {"full model": {"hits": {"1": 0.9716, "3": 0.998}, "mrr": 0.984}},
}
GPU = session(
    {**entry("ranks: eager", 500.0, **{"peak MB": 30.0}), "fullname": "bench/test_gpu_scan.py::test_scan[ranks-eager]"},
    {
        **entry(
            "ranks",
            2000.0,
            **{"x ranks: eager": 4.0, "memory x eager": 30.0, "share of limit": 0.5, "peak MB": 1.0},
            **{"torch.compile": "not measured: out of memory"},
            bars={"pairs/s": "1,000: met", "ranks: eager": "5: missed", "memory x eager": "20: met"},
        ),
        "fullname": "bench/test_gpu_scan.py::test_scan[ranks-ours]",
    },
    m3el_fast={**MACHINE, "gpu": "H100"},
    scale="paper",
)


def written(folder: Path, data: object, name: str = "planted-2026-11-21.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(data))
    return path
