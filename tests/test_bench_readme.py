"""bench/report_measured.py: the README's figures beside its ranking table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import report_measured
from bench.report_data import Recall, Record, Run
from bench.report_measured import measured, newest, recall, times

TUNED = "training, eager, tuned malloc"


def record(name: str, rate: float = 1.0, group: str = "bench/test_planted.py", **fields: Any) -> Record:
    return Record(name, "pairs", group, "", rate=rate, **fields)


def run(*records: Record, scale: str = "default", date: str = "2026-11-21") -> Run:
    return Run(Path("a.json"), date, {}, records, scale)


STAGES = [
    record(
        f"best ten in two stages, {n} candidates",
        ratios={"best ten, exhaustive scan": ratio},
        facts={"recall of the best ten": recall},
    )
    for n, ratio, recall in ((100, 57.99, 1.0), (1000, 19.6, 1.0))
]
TRAINING = [
    record(TUNED, peak=3019e6),
    record("training, fp32", ratios={TUNED: 6.53}, peak=38e6, facts={"gradient_error": 4.97e-7}),
    record("training, bf16", ratios={TUNED: 10.8}, facts={"gradient_error": 3.65e-3}),
]
LATENCY = [
    record(f"one mention, {name}{kb}", facts={"p50 ms": p50, "p99 ms": p99})
    for kb, factor in (("", 1), (", 1,000,000 entities", 10))
    for name, p50, p99 in (("exact scan", 156.2 * factor, 173.3 * factor), ("two stages, 100 candidates", 16.3, 20.8))
]
COMPILED = [
    record(f"{name}, ours", ratios={f"{name}, torch.compile of section 5": ratio})
    for name, ratio in (
        ("icl_loss forward + backward", 1.71),
        ("cross_modal_context", 2.01),
        ("cross_modal_context forward + backward", 1.18),
    )
]
MILLION = [
    record("best ten of one mention, amx", 7e5, median=1.442, facts={"open seconds": 0.0145}),
    record("best ten of 64 mentions", 1_125_513.0, peak=41.5e6),
]


def line(text: str, start: str) -> str:
    [found] = [line for line in text.splitlines() if line.startswith(start)]
    return found


def test_rows_are_fields_of_records() -> None:
    text = measured([run(*STAGES, *TRAINING, *COMPILED, *LATENCY), run(*MILLION, *LATENCY, scale="million")])
    assert line(text, "| two stages").endswith(
        "| 100 candidates 58x (all of the exact best ten found), 1,000 candidates 20x |"
    )
    assert line(text, "| `icl_loss` ").endswith("| 1.7x; 2.0x; 1.2x `torch.compile` of the cheaper form |")
    assert line(text, "| one mention against 109,976").endswith(
        "| exact scan 156 / 173 ms; 100 candidates 16 / 21 ms |"
    )
    assert line(text, "| one mention against 1,000,000").endswith(
        "| exact scan 1,562 / 1,733 ms; 100 candidates 16 / 21 ms |"
    )
    assert line(text, "| training").endswith(
        "| fp32 6.5x, bf16 products 11x the tuned eager form, 1/79 of its memory; gradient error 5e-7, bf16 4e-3 of its"
        " norm |"
    )
    assert line(text, "| 1,000,000 entities").endswith("| 14 ms; 1.4 s, warm; 1.1 M pairs/s, 42 MB |")
    assert line(text, "| GPU").endswith("| not measured |")


def test_what_no_file_has_is_not_measured() -> None:
    text = measured([run()])
    rows = [one for one in text.splitlines()[2:] if one]
    assert len(rows) == len(report_measured._ROWS) + 1 + len(report_measured._SENTENCES)
    assert all("not measured" in row for row in rows)
    partly = measured([run(TRAINING[0], TRAINING[1])])  # bf16 is missing: the row is not half right
    assert line(partly, "| training").endswith("| not measured |")


def test_missed_answers_are_told() -> None:
    missed = record(
        "best ten in two stages, 100 candidates",
        ratios={"best ten, exhaustive scan": 58.0},
        facts={"recall of the best ten": 0.9951},
    )
    assert "(0.995 of the exact best ten found)" in measured([run(missed, STAGES[1])])


def test_the_latest_session_of_the_scale_counts() -> None:
    old, new, tiny = (
        run(record("a", rate), scale=scale, date=date)
        for rate, scale, date in ((1.0, "default", "2026-11-20"), (2.0, "default", "2026-11-21"), (3.0, "tiny", "2027"))
    )
    for order in ([old, new, tiny], [tiny, new, old]):
        assert newest(order, "default").rate("a") == 2.0
    unnamed = run(record("a", 4.0), scale="", date="2026-11-22")
    assert newest([old, unnamed], "default").rate("a") == 4.0
    later_without = run(record("b"), Record("a", "pairs", "", ""), date="2026-11-23")
    assert newest([new, later_without], "default").rate("a") == 2.0


def test_the_whole_test_set_is_of_the_fastest_level_and_of_the_paper_scale() -> None:
    def ranking(level: str, rate: float, mentions: int) -> Record:
        facts = {"mentions": mentions, "entities": 109_976}
        return record(f"ranking, m3el, {level}", rate, median=431.4, peak=25e6, facts=facts)

    paper = run(ranking("avx2", 4e5, 16), ranking("amx", 1.3e6, 5_169), scale="paper")
    assert "all 5,169 test mentions (568 million pairs) took 431 s, 1.3 M pairs/s, once" in measured([paper])
    default = run(ranking("amx", 1.3e6, 64))
    text = measured([default])
    assert "M3EL: not measured" in text and "mapped index: 25 MB" in text
    unnamed = measured([run(ranking("amx", 1.3e6, 64), scale="")])
    assert "M3EL: not measured" in unnamed


def test_gpu_rows_are_those_that_were_timed() -> None:
    group = "bench/test_gpu_scan.py"
    peer = record("ranks: eager", 5e8, group, is_peer=True)
    own = record("ranks", 2e9, group, ratios={"ranks: eager": 4.0, "ranks: torch.compile": 4.5})
    text = measured([run(peer, own, scale="paper")])
    assert line(text, "| GPU") == "| GPU: ranks | 2 G pairs/s, 4.0x eager |"


def test_recall_table() -> None:
    def file(data: str, mentions: int, entities: int) -> Recall:
        curve = [
            {"candidates": n, "recall of the best 1": one, "recall of the best 10": ten, "hits@1": 0.8083, "seconds": s}
            for n, one, ten, s in ((entities, 1.0, 1.0, 40.2), (100, 1.0, 0.9997, 2.52), (10, 0.99884, 0.8097, 1.57))
        ]
        return Recall(Path("r.json"), "", {}, f"{data}, test split", mentions, entities, tuple(curve))

    assert recall([file("sample", 1_198, 1_503), file("WikiMEL", 5_169, 18_880)]).splitlines() == [
        "| candidates | 10 | 100 | all: exact scan |",
        "|---|---|---|---|",
        "| WikiMEL, 5,169 mentions x 18,880 entities: exact best found | 0.9988 | 1 | 1 |",
        "| of the exact best ten, found | 0.810 | 0.9997 | 1 |",
        "| Hits@1 | 0.808 | 0.808 | 0.808 |",
        "| seconds | 1.6 | 2.5 | 40.2 |",
        "| sample, 1,198 mentions x 1,503 entities: exact best, best ten found | 0.9988, 0.810 | 1, 0.9997 | 1, 1 |",
    ]
    assert recall([]) == ""


@pytest.mark.parametrize(("ratio", "text"), [(57.99, "58x"), (9.96, "10x"), (9.94, "9.9x"), (1.7, "1.7x")])
def test_ratios_as_text(ratio: float, text: str) -> None:
    assert times(ratio) == text
