"""bench/gpu_measure.py: ratios and goals of a line of the GPU table."""

from __future__ import annotations

from dataclasses import replace

from bench.gpu_measure import Measured, Row, measure, measure_peer

ROW = Row(
    name="planted",
    error=1e-6,
    own=Measured(0.01, 0.02, 1_000_000),
    items=100,
    unit="pairs",
    peers={"eager": Measured(0.04, 0.01, 30_000_000)},
    peer_items=100,
    limit=0.005,
    goals={"seconds": 0.02, "share of limit": 0.6, "x eager": 5.0, "memory x eager": 20.0, "x other": 1.0},
)


def test_ratios_and_goals() -> None:
    assert ROW.ratios() == {"x eager": 4.0, "memory x eager": 30.0}
    assert ROW.outcomes() == {
        "seconds": "met",
        "share of limit": "missed",
        "x eager": "missed",
        "memory x eager": "met",
        "x other": "not measured",
    }
    text = ROW.text()
    assert "10 ms (spread 2.0%), 1e+04 pairs/s, peak 1 MB; error 1.0e-06; 50% of the limit" in text
    assert "eager: 40 ms" in text
    assert "goal x eager 5: missed" in text
    assert ROW.json()["outcomes"]["seconds"] == "met"


def test_peer_on_a_slice_is_compared_per_item_and_not_by_memory() -> None:
    assert replace(ROW, peer_items=10).ratios() == {"x eager": 40.0}


def test_without_a_gpu_calls_run_and_nothing_is_measured() -> None:
    calls: list[int] = []
    row = replace(ROW, own=measure(lambda: calls.append(1), "cpu"), peers={})
    assert calls == [1]
    assert set(row.outcomes().values()) == {"not measured"}
    assert "ms" not in row.text()


def test_peer_that_fails_is_noted() -> None:
    def fail() -> None:
        raise RuntimeError("no such luck\nand more")

    def fail_without_a_word() -> None:
        raise AssertionError

    row = replace(ROW, peers={"eager": measure_peer(fail, "cpu"), "other": measure_peer(fail_without_a_word, "cpu")})
    assert "eager: not measured (failed: RuntimeError: no such luck)" in row.text()
    assert "other: not measured (failed: AssertionError: )" in row.text()


def test_no_error_is_printed_where_none_was_computed() -> None:
    assert "error" not in replace(ROW, error=None).text()
