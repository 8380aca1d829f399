"""bench/report_roofline.py and what it is drawn from: counted work, ceilings, and where points and roofs lie."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.features import SyntheticKB, synthetic_model
from bench.limits import coarse_bytes, entity_bytes, pair_work
from bench.measure import Measure
from bench.report_data import Record, load
from bench.report_page import Page, title
from bench.report_plots import decades
from bench.report_roofline import roofline
from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex

MACHINE = {"cpu": "A", "cores": 2, "isa": ["avx2"], "memory_gb": 25, "threads": 2, "torch": "2.13"}
CEILINGS = {"fp32 FLOP/s": 1e11, "bf16 FLOP/s": 1e12, "bytes/s": 1e10}


def entry(name: str, rate: float, group: str = "bench/test_planted.py", **info: Any) -> dict[str, Any]:
    extra = {"name": name, "unit": "pairs", "pairs/s": rate, "spread": 0.01, "rounds": 3, **info}
    return {"fullname": f"{group}::test[{name}]", "extra_info": extra, "stats": {"median": 1 / rate}}


def written(folder: Path, *entries: dict[str, Any], **info: Any) -> Path:
    machine = {"m3el_fast": MACHINE, "python_version": "3.11", "scale": "default", **info}
    path = folder / "planted.json"
    data = {"machine_info": machine, "benchmarks": entries, "datetime": "2026-11-21T00:00:00", "version": "5"}
    path.write_text(json.dumps(data))
    return path


def drawn(path: Path, modelled: list[Record]) -> str:
    run = load(path)
    return roofline([run], modelled, title)  # type: ignore[list-item]


def spots(text: str, kind: str) -> list[tuple[float, float]]:
    found = re.findall(rf'<circle class="s{kind}" cx="([\d.]+)" cy="([\d.]+)"', text)
    return [(float(x), float(y)) for x, y in found]


def roofs(text: str) -> list[tuple[float, ...]]:
    """x1, x2, y1, y2 of each line: the slope, then the ceilings."""
    found = re.findall(r'class="roofline" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)"', text)
    return [tuple(map(float, line)) for line in found]


PAIR = (
    entry("theirs", 1e6, flop=1e4, moved=100.0),
    entry("ours", 1e8, flop=1e4, moved=100.0, **{"x theirs": 100.0}),
)


def test_points_lie_where_their_work_says(tmp_path: Path) -> None:
    text = drawn(written(tmp_path, *PAIR, ceilings=CEILINGS), [])
    [ours], [theirs] = spots(text, "own"), spots(text, "peer")
    slope, fp32, bf16 = roofs(text)
    assert ours == (slope[1], bf16[2])  # 1e12 FLOP/s at 100 FLOP per byte: where the slope meets the bf16 ceiling
    assert fp32[0] < ours[0] and fp32[2] > ours[1]
    assert theirs[0] == ours[0]  # the same work
    decade = fp32[2] - bf16[2]
    assert theirs[1] - ours[1] == pytest.approx(2 * decade, abs=0.2)
    assert "ours: 1 TFLOP/s at 100 FLOP per byte" in text and "theirs: 10 GFLOP/s" in text
    assert ">10 GB/s" in text and "FLOP per byte of main memory" in text and "fp32 100 GFLOP/s" in text


def test_every_group_has_a_plot_on_the_same_axes(tmp_path: Path) -> None:
    other = entry("other", 1e3, group="bench/test_other.py", flop=1.0, moved=10.0)
    text = drawn(written(tmp_path, *PAIR, other, ceilings=CEILINGS), [])
    figures = text.split("<figure")[1:]
    assert len(figures) == 2 and [one.count('class="faint"') for one in figures] == [3, 3]
    assert roofs(figures[0]) == roofs(figures[1])
    assert ["<b>2</b> theirs" in one for one in figures] == [True, False]


def test_numbers_of_close_points_keep_apart(tmp_path: Path) -> None:
    many = [entry(f"n{i}", 1e6, flop=1e4, moved=100.0) for i in range(8)]
    text = drawn(written(tmp_path, *many, ceilings=CEILINGS), [])
    found = re.findall(r'class="number" x="([\d.]+)" y="([\d.]+)"', text)
    places = [(float(x), float(y)) for x, y in found]
    assert len(places) == 8
    for (a, b), (c, d) in combinations(places, 2):
        assert max(abs(a - c), abs(b - d)) >= 11.8


@pytest.mark.parametrize("info", [{}, {"ceilings": {}}, {"ceilings": {"bytes/s": 1e10}}])
def test_no_roof_no_plot(info: dict[str, Any], tmp_path: Path) -> None:
    text = drawn(written(tmp_path, *PAIR, **info), [])
    assert "<svg" not in text and "not measured" in text


def test_what_counts_no_work_is_not_drawn(tmp_path: Path) -> None:
    text = drawn(written(tmp_path, *PAIR, entry("selection", 1e9), ceilings=CEILINGS), [])
    assert text.count("<title>") == 2


def test_modelled_kernels_stand_under_a_roof_of_their_own(tmp_path: Path) -> None:
    kernel = Record("kernel", "launches", "modelled", "", rate=10.0, share=0.5, flop=1e13, moved=1e11)
    text = drawn(written(tmp_path, *PAIR, ceilings=CEILINGS), [kernel])
    gpu = text.partition("<h3>GPU, under the roof of an H100</h3>")[2].partition("<h3>")[0]
    assert (
        "Modelled, not measured" in gpu and "bf16 949 TFLOP/s" in gpu and ">3,350 GB/s" in gpu and "byte of HBM" in gpu
    )
    [(x, y)] = spots(gpu, "modelled")
    slope, *_ = roofs(gpu)
    assert x < slope[1] and y > slope[3]  # 1e14 FLOP/s at 100 FLOP per byte
    assert not spots(gpu, "own") and "measured: <span" in gpu
    assert "modelled" not in drawn(written(tmp_path, *PAIR, ceilings=CEILINGS), [])


def test_gpu_benchmarks_stand_beside_the_modelled(tmp_path: Path) -> None:
    timed = entry("scan", 1e10, group="bench/test_gpu_scan.py", flop=1e4, moved=100.0)
    text = drawn(written(tmp_path, *PAIR, timed, ceilings=CEILINGS), [])
    cpu, gpu = text.partition("<h3>GPU, under the roof of an H100</h3>")[::2]
    assert "scan: 100 TFLOP/s" in gpu and "scan: 100 TFLOP/s" not in cpu


def test_sizes_on_the_axis_have_no_exponents(tmp_path: Path) -> None:
    wide = entry("wide", 1.0, flop=9e8, moved=100.0)
    text = drawn(written(tmp_path, *PAIR, wide, ceilings=CEILINGS), [])
    assert ">10 M<" in text and ">100,000<" in text and "e+0" not in text


def test_page_has_the_plots(tmp_path: Path) -> None:
    page = Page([load(written(tmp_path, *PAIR, ceilings=CEILINGS))], [], datetime(2026, 11, 21)).html()
    assert page.count('aria-label="Roofline') == 1


@pytest.mark.parametrize("ceilings", [{"bytes/s": 0.0}, {"bytes/s": "fast"}])
def test_broken_ceilings_are_refused(ceilings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"planted\.json: expected a results file"):
        load(written(tmp_path, *PAIR, ceilings=ceilings))


def test_no_work_below_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="above 0"):
        load(written(tmp_path, entry("a", 1.0, flop=-1.0, moved=1.0)))


def test_decades_enclose_their_values() -> None:
    axis = decades([3.0, 9e4])
    assert (axis.low, axis.high) == (1.0, 1e5) and axis.ticks == tuple(10.0**n for n in range(6))
    assert axis.place(10**2.5) == pytest.approx(0.5)


class Fixture:
    """In pytest-benchmark's place: counts calls."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.stats = None

    def pedantic(self, call: Any, rounds: int, warmup_rounds: int) -> None:
        for _ in range(rounds + warmup_rounds):
            call()


def test_measure_writes_counted_work_and_warms_once() -> None:
    fixture, calls, results = Fixture(), [], []
    measure = Measure(fixture, {}, results)
    measure.time(lambda: calls.append(1), 3)
    assert len(calls) == 4
    measure.time(lambda: calls.append(1), 3, warm=False)
    assert len(calls) == 7
    measure.record("counted", items=1, unit="pairs", flop=5.0, moved=2.0)
    assert fixture.extra_info["flop"] == 5.0 and fixture.extra_info["moved"] == 2.0
    measure.record("not", items=1, unit="pairs")
    assert "flop" not in results[-1] and "moved" not in results[-1]


@pytest.mark.parametrize("kind", ["m3el", "mimic"])
def test_counted_bytes_are_those_of_an_index(kind: str) -> None:
    index = EntityIndex.build(synthetic_model(kind), SyntheticKB(40), progress=False)
    rows, images = torch.arange(index.rows), torch.arange(index.visual_rows)
    [(_, item, _)], [(_, visual, _)] = list(index.items(rows)), list(index.visual(images))
    size = {name: tensor.nbytes for name, tensor in {**item, **{f"v.{k}": v for k, v in visual.items()}}.items()}
    share = index.visual_rows / index.rows
    assert sum(size.values()) / index.rows == pytest.approx(entity_bytes(kind, share))
    if kind == "m3el":
        coarse = ("text.global", "cross.t2v", "cross.v2t", "v.global")
        assert sum(size[name] for name in coarse) / index.rows == pytest.approx(coarse_bytes(share))


def test_exponentials_are_no_flop() -> None:
    work = pair_work("m3el", 0.61)
    assert work.flop == work.tile + work.rest and work.logits > 0
    assert math.isclose(work.tile, 2 * 96 * (40 * 40 + 0.61 * 50 * 50))
