"""Calibration: what generated the answers is found again, the likelihood has its maximum there, errors are by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from m3el_fast.calibrate import calibrate, describe
from m3el_fast.calibration import CALIBRATION_FILE, Calibration, chosen_threshold
from m3el_fast.calibration_fit import TEMPERATURES, Evidence, fit, threshold
from m3el_fast.calibration_metrics import BINS, Bin, calibration_metrics, expected_error, nil_metrics, reliability
from m3el_fast.errors import InputError

ENTITIES = 60


def drawn(temperature: float, nil_score: float | None, mentions: int = 6000) -> tuple[Evidence, Tensor]:
    """Answers drawn from a softmax of random scores / temperature, NIL being one of them; and the scores."""
    generator = torch.Generator().manual_seed(7)
    scores = 4 * temperature * torch.randn(mentions, ENTITIES, generator=generator, dtype=torch.float64)
    logits = scores / temperature
    if nil_score is not None:
        logits = torch.cat([logits, torch.full((mentions, 1), nil_score / temperature)], dim=1)
    answer = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    gold = scores.gather(1, answer.clamp(max=ENTITIES - 1)[:, None])[:, 0].masked_fill(answer == ENTITIES, torch.nan)
    return Evidence(gold, scores.amax(dim=1), scores.argmax(dim=1) == answer, partition(scores, TEMPERATURES)), scores


def partition(scores: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    return torch.stack([torch.logsumexp(scores / temperature, dim=1) for temperature in temperatures], dim=1)


def nll(evidence: Evidence, scores: Tensor, temperature: float, nil_score: float | None) -> float:
    """Without interpolation."""
    total = torch.logsumexp(scores / temperature, dim=1)
    likely = evidence.gold / temperature
    if nil_score is not None:
        nil = torch.tensor(nil_score / temperature, dtype=torch.float64)
        total, likely = torch.logaddexp(total, nil), torch.where(evidence.nil, nil, likely)
    return float((total - likely).mean())


def nil_probability(calibration: Calibration, log_partition: Tensor) -> Tensor:
    assert calibration.nil_score is not None
    return (calibration.nil_score / calibration.temperature - log_partition).sigmoid()


# -- fitting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nil_score", [None, 9.0])  # a third of the answers are NIL
@pytest.mark.parametrize("temperature", [0.06, 1.0, 17.0])
def test_the_temperature_that_made_the_answers_is_found(temperature: float, nil_score: float | None) -> None:
    nil_score = None if nil_score is None else nil_score * temperature
    evidence, scores = drawn(temperature, nil_score)
    found, found_nil, _ = fit(evidence)
    assert found == pytest.approx(temperature, rel=0.06)  # the standard error of 6,000 draws is 2%
    if nil_score is None:
        assert found_nil is None
    else:
        assert found_nil == pytest.approx(nil_score, abs=0.3 * temperature)
    # and of these very draws it is the most likely one, to within the steps of the search
    best = nll(evidence, scores, found, found_nil)
    for factor in (0.98, 1.02):
        assert nll(evidence, scores, found * factor, found_nil) > best - 1e-5
        if found_nil is not None:
            assert nll(evidence, scores, found, found_nil + (factor - 1) * temperature) > best - 1e-5
    assert best < nll(evidence, scores, 1.3 * found, found_nil) - 1e-3


def test_the_likelihood_has_its_maximum_also_where_the_softmax_is_wrong() -> None:
    """Here mentions have no answer whatever their scores are."""
    evidence, scores = drawn(1.0, None, 500)
    evidence = replace(evidence, gold=evidence.gold.masked_fill(torch.arange(500) % 3 == 0, torch.nan))
    found, nil_score, _ = fit(evidence)
    assert nil_score is not None
    best = nll(evidence, scores, found, nil_score)
    for factor in (0.97, 1.03):
        assert nll(evidence, scores, found * factor, nil_score) > best
        assert nll(evidence, scores, found, nil_score * factor) > best


def test_with_nil_its_probabilities_sum_to_their_number() -> None:
    evidence, _ = drawn(1.0, 7.0)
    found = calibrate(evidence, "DRAWN", ENTITIES)
    assert (found.mentions, found.nil, found.data, found.entities) == (6000, int(evidence.nil.sum()), "DRAWN", 60)
    assert found.nil > 100
    logs = evidence.at(found.temperature).log_partition[:, 0]
    assert float(nil_probability(found, logs).sum()) == pytest.approx(found.nil, rel=1e-6)
    measured = calibration_metrics(evidence.at(found.temperature), found, found.nil_threshold)
    assert measured.ece < 0.03
    assert measured.confidence == pytest.approx(measured.accuracy, abs=0.02)
    plain = expected_error(reliability((evidence.best - evidence.at(1.0).log_partition[:, 0]).exp(), evidence.right))
    said = f"ECE over 6000 mentions: {measured.ece:.4f}, of scores as they are {plain:.4f}"
    assert describe(found, evidence).splitlines()[1] == said
    # no threshold treats more mentions rightly
    probability = found.probability(evidence.best, logs)
    others = [nil_metrics(probability, evidence.right, evidence.nil, at / 100).accuracy for at in range(101)]
    assert measured.nil is not None and measured.nil.accuracy >= max(others) > others[0]
    # of a wrong temperature the error shows
    wrong = found.model_copy(update={"temperature": found.temperature / 3})
    assert calibration_metrics(evidence.at(wrong.temperature), wrong, None).ece > 0.1


def test_interpolated_partitions_are_as_near_as_stated() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(200, 300, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 200)[:, None]
    best = scores.amax(dim=1)
    evidence = Evidence(best, best, torch.ones(200, dtype=torch.bool), partition(scores, TEMPERATURES))
    wanted = torch.logspace(-5, 7, 191, base=2, dtype=torch.float64)
    exact = partition(scores, tuple(wanted.tolist()))
    assert (evidence.partition(wanted) - exact).abs().max() < 2e-3
    assert (evidence.at(0.77).log_partition[:, 0] - torch.logsumexp(scores / 0.77, dim=1)).abs().max() < 2e-3
    at_nodes = evidence.partition(torch.tensor(TEMPERATURES, dtype=torch.float64))
    torch.testing.assert_close(at_nodes, evidence.log_partition, rtol=1e-9, atol=1e-9)


def test_where_every_answer_is_far_ahead_the_least_is_claimed() -> None:
    scores = torch.zeros(20, ENTITIES, dtype=torch.float64)
    scores[:, 3] = 10.0
    best = scores[:, 3]
    evidence = Evidence(best, best, torch.ones(20, dtype=torch.bool), partition(scores, TEMPERATURES))
    found, nil_score, nil_threshold = fit(evidence)
    assert (nil_score, nil_threshold) == (None, None)
    assert 0.4 < found < 1.0  # 59 exp(-10 / T) is 1e-6 at 0.56


def test_the_threshold_is_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(3)
    for count in (1, 2, 5, 40):
        for _ in range(30):
            probability = torch.randint(0, 6, (count,), generator=generator).double() / 5  # many ties, also at 1
            nil = torch.rand(count, generator=generator) < 0.4
            right = (torch.rand(count, generator=generator) < 0.6) & ~nil

            def treated(at: float, probability: Tensor = probability, nil: Tensor = nil, right: Tensor = right) -> int:
                return int(torch.where(nil, probability < at, right & (probability >= at)).sum())

            found = threshold(probability, right, nil)
            gained = [treated(at / 10) for at in range(11)]
            assert treated(found) == max(gained)
            lowest = gained.index(max(gained)) / 10  # of the thresholds that are as good
            assert (probability < found).equal(probability < lowest)
            assert 0 <= found <= 1


# -- measuring --------------------------------------------------------------------------------------------------------


def test_expected_calibration_error_by_hand() -> None:
    confidence = torch.tensor([0.9, 0.1, 0.3, 0.8, 0.6, 0.2, 0.7])
    right = torch.tensor([True, False, True, True, False, False, True])
    bins = reliability(confidence, right, 3)  # .1 .2 | .3 .6 | .7 .8 .9
    assert [one.mentions for one in bins] == [2, 2, 3]
    assert [one.confidence for one in bins] == pytest.approx([0.15, 0.45, 0.8])
    assert [one.accuracy for one in bins] == pytest.approx([0.0, 0.5, 1.0])
    assert expected_error(bins) == pytest.approx((2 * 0.15 + 2 * 0.05 + 3 * 0.2) / 7)
    assert expected_error([Bin(5, 0.5, 0.5)]) == 0
    few = reliability(confidence[:2], right[:2])
    assert len(few) == 2 < BINS


def test_equal_confidences_are_in_one_bin() -> None:
    """So that the order of mentions does not matter."""
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.5, 0.1, 0.5])
    right = torch.tensor([True, True, True, True, False, False, False])
    expected = [Bin(1, pytest.approx(0.1), 0.0), Bin(5, 0.5, 0.6), Bin(1, pytest.approx(0.9), 1.0)]
    for order in (torch.arange(7), torch.arange(7).flip(0)):
        assert reliability(confidence[order], right[order]) == expected
        assert [one.mentions for one in reliability(confidence[order], right[order], 2)] == [1, 6]
    assert reliability(torch.ones(40), torch.arange(40) < 10) == [Bin(40, 1.0, 0.25)]


def test_nil_metrics_by_hand() -> None:
    probability = torch.tensor([0.9, 0.4, 0.2, 0.1, 0.3, 0.8])
    nil = torch.tensor([False, True, True, False, False, True])
    right = torch.tensor([True, False, False, True, False, False])
    found = nil_metrics(probability, right, nil, 0.4)  # dropped: the third, fourth and fifth, not the second
    assert (found.mentions, found.threshold) == (3, 0.4)
    assert (found.dropped, found.found, found.lost) == (3, 1, 1)
    assert (found.precision, found.recall, found.f1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found.accuracy == pytest.approx(2 / 6)
    none = nil_metrics(probability, right, nil, 0.0)
    assert (none.precision, none.recall, none.f1, none.accuracy) == (0, 0, 0, pytest.approx(2 / 6))
    assert (none.dropped, none.found, none.lost) == (0, 0, 0)


def test_mentions_without_an_answer_count_where_nil_has_a_probability() -> None:
    gold = torch.tensor([2.0, torch.nan], dtype=torch.float64)
    best = torch.tensor([2.0, 1.0], dtype=torch.float64)
    logs = torch.logsumexp(torch.tensor([[2.0, 0.0], [1.0, 0.0]], dtype=torch.float64), dim=1)
    evidence = Evidence(gold, best, torch.tensor([True, False]), logs[:, None])
    fitted = {"temperature": 1.0, "nil_threshold": 0.5, "data": "D", "entities": 2, "mentions": 2, "nil": 1}
    without = Calibration(nil_score=None, **fitted)
    found = calibration_metrics(evidence, without, None)
    first = float((2 - logs[0]).exp())
    assert (found.mentions, found.accuracy, found.nil) == (1, 1.0, None)
    assert found.confidence == pytest.approx(first)
    assert found.nll == pytest.approx(-float(2 - logs[0]))
    assert found.ece == pytest.approx(1 - first)
    with_nil = Calibration(nil_score=1.0, **fitted)
    total = torch.logaddexp(logs, torch.tensor(1.0, dtype=torch.float64))
    found = calibration_metrics(evidence, with_nil, 0.5)
    assert (found.mentions, found.accuracy) == (2, 0.5)
    assert found.nll == pytest.approx(-float((2 - total[0]) + (1 - total[1])) / 2)
    assert found.nil is not None
    assert (found.nil.f1, found.nil.accuracy) == (1.0, 1.0)
    said = (
        "0.5000: 1 mentions, 1 of the 1 without an answer, 0 whose best entity is the answer; precision 1.0000, recall "
    )
    assert said in found.describe() and "nil" in found.record()


def test_a_threshold_is_measured_also_where_every_mention_has_an_answer() -> None:
    gold = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    logs = torch.tensor([2.0, 2.0, 3.0], dtype=torch.float64)
    evidence = Evidence(gold, gold, torch.tensor([True, True, False]), logs[:, None])
    one = Calibration(temperature=1.0, nil_score=None, nil_threshold=None, data="D", entities=2, mentions=2, nil=0)
    found = calibration_metrics(evidence, one, 0.5)  # probabilities: 1, 1 / e, 1 / e^2
    assert found.nil is not None
    assert (found.nil.mentions, found.nil.dropped, found.nil.found, found.nil.lost) == (0, 2, 0, 1)
    last = "no entity below 0.5000: 2 mentions, 1 whose best entity is the answer; 0.3333 of all treated rightly"
    assert found.describe().splitlines()[1] == last


def test_probabilities_of_all_there_is_sum_to_one() -> None:
    scores = torch.randn(4, 9, dtype=torch.float64)
    fitted = {"temperature": 0.4, "nil_threshold": None, "data": "D", "entities": 9, "mentions": 2, "nil": 1}
    for nil_score in (None, -2.0, 0.7):
        one = Calibration(nil_score=nil_score, **fitted)
        logs = torch.logsumexp(scores / 0.4, dim=1)
        total = one.probability(scores, logs).sum(dim=1)
        rest = 0 if nil_score is None else nil_probability(one, logs)
        torch.testing.assert_close(total + rest, torch.ones(4, dtype=torch.float64))
    one = Calibration(nil_score=None, **fitted)
    nothing = torch.full((1, 1), -torch.inf, dtype=torch.float64)
    assert one.probability(nothing, nothing[0]).tolist() == [[0.0]]
    rounded = torch.tensor([125 - 1e-9], dtype=torch.float64)
    assert one.probability(torch.tensor([[50.0]]), rounded).tolist() == [[1.0]]


# -- the file ---------------------------------------------------------------------------------------------------------

GOOD = Calibration(temperature=0.7, nil_score=3.5, nil_threshold=0.2, data="D", entities=9, mentions=2, nil=1)


def test_the_file(tmp_path: Path) -> None:
    assert Calibration.read(tmp_path) is None
    GOOD.write(tmp_path)
    assert Calibration.read(tmp_path) == GOOD
    assert [path.name for path in tmp_path.iterdir()] == [CALIBRATION_FILE]


BAD = {
    "empty": ("", ""),
    "zero": (GOOD.model_dump_json().replace("0.7", "0"), ", key temperature"),
    "infinite": (GOOD.model_dump_json().replace("0.7", "1e999"), ", key temperature"),
    "threshold": (GOOD.model_dump_json().replace("0.2", "1.2"), ", key nil_threshold"),
    "unknown": (GOOD.model_dump_json().replace("{", '{"x": 1, ', 1), ", key x"),
    "missing": (GOOD.model_dump_json().replace('"data":"D",', ""), ", key data"),
}


@pytest.mark.parametrize(("content", "where"), BAD.values(), ids=BAD)
def test_a_file_that_is_something_else(content: str, where: str, tmp_path: Path) -> None:
    (tmp_path / CALIBRATION_FILE).write_text(content)
    message = (
        rf"{CALIBRATION_FILE}{where}: expected a calibration as m3el_fast writes it, got .+\. A newer version may "
    )
    with pytest.raises(InputError, match=message):
        Calibration.read(tmp_path)


def test_a_file_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / CALIBRATION_FILE).mkdir()
    with pytest.raises(InputError, match=f"{CALIBRATION_FILE}: expected a calibration .*, got Is a directory"):
        Calibration.read(tmp_path)


def test_the_threshold_to_use() -> None:
    assert chosen_threshold("t", None, None) is None
    assert chosen_threshold("t", GOOD, None) == 0.2
    assert chosen_threshold("t", GOOD, 0) == 0.0
    assert chosen_threshold("t", GOOD, np.float32(0.5)) == 0.5  # type: ignore[arg-type]
    for bad in (-0.1, 1.5, True, float("nan"), "0.5"):
        with pytest.raises(InputError, match="t: expected a probability, from 0 to 1, got"):
            chosen_threshold("t", GOOD, bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"t: expected a calibrated checkpoint, got one without calibration\.json"):
        chosen_threshold("t", None, 0.5)
