"""bench/report.py: what the page says, the README's table."""

from __future__ import annotations

import copy
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import report, report_page, report_readme
from bench.report_data import GPU_PARTS, Record, Run, load
from bench.report_figures import compared, fitted
from bench.report_page import Page, title
from bench.report_plots import Bar, Series, bars, lines
from bench.report_text import bytes_text, rate_text, seconds_text, significant
from bench_results import BENCH, EVIL, GPU, QUALITY, RANKING, RECALL, SCALING, SERVING, entry, session, written
from m3el_fast.errors import InputError


def page(folder: Path, *data: object) -> str:
    files = [load(written(folder, one, f"planted-{number}-2026-11-21.json")) for number, one in enumerate(data)]
    return Page(files, [], datetime(2026, 11, 21, 12, 30)).html()


class Reader(HTMLParser):
    """Text and elements of a page; what is opened is closed in order."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_page_has_every_section_and_needs_nothing_else(tmp_path: Path) -> None:
    scaled = session(entry("scaled", 5.0, scaling=SCALING))
    text = page(tmp_path, RANKING, RECALL, QUALITY, GPU, scaled, SERVING)
    found = Reader(text)
    for expected in (
        *(
            "Summary",
            "Against peers",
            "Roofline",
            "Two-stage recall",
            "Scaling",
            "Serving",
            "Quality",
            "Machines and versions",
        ),
        *(
            "1.23 M pairs/s",
            "31.5 x released eager, tuned malloc",
            "113%",
            "23.7 MB",
            "✓ met",
            "✗ missed",
            "not measured",
        ),
        *("p99 12.5 ms", "at least 0.7", "peak at most 20 MB", "20 x less memory than eager", "5 x eager"),
        *("exhaustive scan: 40.2 s", "fitted exponent 0.98", "0.972", "Planted & Sons", "5.3.1", "3.11.7", "H100"),
        *(
            "2026-11-21 12:30",
            "2026-11-21",
            "pytest bench/test_planted.py --benchmark",
            "pytest bench/test_gpu_scan.py --benchmark --scale paper",
        ),
        *("planted: 18,880 entities (100 candidates, two stages)", "3.27", "31.3"),
        *("python -m bench.recall CHECKPOINT --data DIR", "Machine A", "Machine B", "Machine C"),
    ):
        assert expected in found.text, expected
    assert not {"script", "link", "img", "iframe"} & set(found.seen)
    assert all(link.startswith("#") for link in found.links)
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "prefers-color-scheme: dark" in text


def test_names_are_escaped(tmp_path: Path) -> None:
    scaled = session(entry(EVIL, 5.0, scaling={**SCALING, "axis": EVIL}), entry("b", 1.0, **{f"x {EVIL}": 2.0}))
    quality = {**QUALITY, EVIL: {EVIL: {"hits": {"1": 1.0}, "mrr": 1.0}}}
    text = page(tmp_path, scaled, RECALL, quality, {**SERVING, "index": EVIL})
    assert "<script" not in text and "&lt;script&gt;" in text
    Reader(text)


def test_empty_sections_say_so(tmp_path: Path) -> None:
    text = page(tmp_path, session())
    for section in ("against-peers", "roofline", "two-stage-recall", "scaling", "serving", "quality"):
        body = text.partition(f'<section id="{section}">')[2].partition("</section>")[0]
        assert "not measured" in body, section
    summary = Reader(text.partition('<section id="summary">')[2].partition("</section>")[0]).text
    assert all(part in summary for part in GPU_PARTS) and summary.count("not measured") == len(GPU_PARTS)


def test_gpu_parts_without_results_are_not_measured(tmp_path: Path) -> None:
    summary = page(tmp_path, GPU).partition('<section id="summary">')[2].partition("</section>")[0]
    missing = [part for part in GPU_PARTS if part != "scan"]
    assert summary.count('data-label="rate"><span class="none">not measured<') == len(missing)
    assert f"bench/gpu_check.sh table {' '.join(missing)}<" in summary


def test_peers_without_results_stand_beside_the_ratios(tmp_path: Path) -> None:
    cell = page(tmp_path, GPU).partition("4 x eager")[2].partition("</td>")[0]
    assert "torch.compile: not measured: out of memory" in cell


def test_a_title_is_the_whole_first_sentence() -> None:
    for path in sorted(BENCH.glob("test_*.py")):
        first = title(f"bench/{path.name}")
        assert first.count("(") == first.count(")") and not first.endswith((",", ":")), first


def test_modelled_kernels_are_marked(tmp_path: Path) -> None:
    files = [load(written(tmp_path, RANKING))]
    kernel = Record("planted_kernel", "", "modelled", "python -m bench.roofline", share=0.77)
    text = Page(files, [kernel], datetime(2026, 11, 21)).html()
    assert "77%, modelled" in text and "python -m bench.roofline" in text and 'class="bar modelled"' in text


def test_what_is_compared_stands_together(tmp_path: Path) -> None:
    data = session(
        *(entry(name, 1.0) for name in ("p", "q", "alone")),
        entry("a", 2.0, **{"x p": 2.0}),
        entry("b", 3.0, **{"x p": 3.0, "x gone": 1.0}),
        entry("c", 2.0, **{"x q": 2.0}),
    )
    run = load(written(tmp_path, data))
    assert isinstance(run, Run)
    assert [[record.name for record in one] for one in compared(run)] == [["p", "a", "b"], ["q", "c"]]


def test_the_later_of_two_of_one_name_counts(tmp_path: Path) -> None:
    run = load(written(tmp_path, session(entry("p", 1.0), entry("p", 2.0))))
    assert isinstance(run, Run) and run.by_name()["p"].rate == 2.0


def test_what_has_a_peer_itself_is_no_peer(tmp_path: Path) -> None:
    data = session(entry("p", 1.0), entry("a", 2.0, **{"x p": 2.0}), entry("b", 3.0, **{"x a": 1.5}))
    run = load(written(tmp_path, data))
    assert isinstance(run, Run)
    assert [record.is_peer for record in run.records] == [True, False, False]


def test_what_is_ours_is_no_peer(tmp_path: Path) -> None:
    run = load(written(tmp_path, session(entry("p", 1.0, ours=True), entry("a", 2.0, **{"x p": 2.0}))))
    assert isinstance(run, Run)
    assert [record.is_peer for record in run.records] == [False, False] and not run.records[0].facts


def test_fit_goes_through_a_power_law() -> None:
    points = [(x, 3.0 * x**1.5) for x in (2.0, 5.0, 40.0)]
    assert fitted(points, 1.5) == [pytest.approx(points[0]), pytest.approx(points[2])]


def test_bars_are_as_long_as_their_values() -> None:
    rows = [Bar("a", "own", 400.0, "400"), Bar("b", "peer", 100.0, "100"), Bar("c", "own", None, "")]
    linear = bars(rows, "pairs a second", rate_text, log=False)
    assert "width:100.00%" in linear and "width:25.00%" in linear and "not measured" in linear
    log = bars([Bar("a", "own", 1000.0, ""), Bar("b", "peer", 10.0, "")], "", rate_text, log=True)
    assert "width:100.00%" in log and "width:33.33%" in log  # from 1, a decade below the smallest, to 1,000


def test_lines_lie_where_their_values_say() -> None:
    text = lines("t", [Series("s", [(1, 1.0), (10, 10.0), (100, 100.0)], "1")], "x", str, str, log_y=True)
    heights = [float(part.partition('"')[0]) for part in text.split('cy="')[1:]]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert heights[0] > heights[1] and heights[2] == 24  # 100 is at the top of the axis
    assert "not measured" in lines("t", [Series("s", [], "1")], "x", str, str, log_y=True)
    assert "<circle" in lines("one point", [Series("s", [(5, 1.0)], "1")], "x", str, str, log_y=False)


def test_numbers_as_text() -> None:
    assert [rate_text(x) for x in (2.876e9, 1_226_492, 683_978, 87.29, 0.5969)] == [
        *("2.88 G", "1.23 M", "684,000", "87.3", "0.597"),
    ]
    assert [seconds_text(x) for x in (40.2, 0.0145, 1.2e-5, 3e-9)] == ["40.2 s", "14.5 ms", "12 µs", "3 ns"]
    assert [bytes_text(x) for x in (3.588e9, 43.6e6, 0.0)] == ["3.59 GB", "43.6 MB", "0 kB"]
    assert significant(9.999) == "10" and significant(-0.04567) == "-0.0457"


README = """\
| | pairs/s | ratio |
|---|---|---|
| **m3el_fast, M3EL**, exact (bf16 scan + fp32 settling) | **1,226,000** | **31.5** |
| m3el_fast, M3EL, AVX2 fp32 | 324,000 | 8.3 |
| a peer \\| of others | 170,000 | 4.4 |
| the released code's form, eager PyTorch, best chunk, malloc tuned | 38,900 | 1 |
| the same with the default malloc | 21,500 | 0.6 |
| **m3el_fast, MIMIC**, exact | **2,253,000** | |
| GPU | not measured | |
"""


def test_table_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older = {
        **RANKING,
        "datetime": "2026-11-20T00:00:00",
        "benchmarks": [copy.deepcopy(e) for e in RANKING["benchmarks"]],
    }
    older["benchmarks"][3]["extra_info"]["pairs/s"] = 1.0
    files = [
        written(tmp_path, RANKING, "a.json"),
        written(tmp_path, older, "b.json"),
        written(tmp_path, RECALL, "c.json"),
    ]
    for order in (files, files[::-1]):  # the newest counts
        report.main(["--readme", *map(str, order)])
        assert capsys.readouterr().out.startswith(f"{README}\n| measured | |\n")
    report.main(["--readme", *map(str, files), str(written(tmp_path, GPU, "gpu.json"))])
    with_gpu = README.replace("| GPU | not measured | |", "| GPU: ranks | 2,000 | |")
    assert capsys.readouterr().out.startswith(f"{with_gpu}\n")


def test_readme_needs_a_ranking(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="released eager, tuned malloc"):
        report.main(["--readme", str(written(tmp_path, session(entry("a", 1.0))))])


def test_rates_of_the_readme() -> None:
    rates = (2_252_885.8, 683_978.1, 38_935.7, 1_000.4, 99.96, 1.234)
    assert [report_readme.rounded(rate) for rate in rates] == [
        "2,253,000",
        "684,000",
        "38,900",
        "1,000",
        "100.0",
        "1.23",
    ]


def test_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    report.main([str(written(tmp_path, RANKING)), "--out", str(out)])
    assert capsys.readouterr().out == f"{out}\n"
    assert "ranking, m3el, avx512bf16" in Reader(out.read_text(encoding="utf-8")).text


def test_peers_are_named_without_the_computation() -> None:
    for peer, name, short in (
        ("g2l_scores, text, eager, section 5", "g2l_scores, text, fp32", "eager, section 5"),
        ("one mention, exact scan", "one mention, two stages, 100 candidates", "exact scan"),
        ("ranks: eager", "ranks", "eager"),
        ("released eager, tuned malloc", "ranking, m3el, avx2", "released eager, tuned malloc"),
        ("best ten", "best ten, 10 candidates", "best ten"),
    ):
        assert report_page._short(peer, name) == short
