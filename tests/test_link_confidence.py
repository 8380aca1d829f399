"""Probabilities of links and mentions without an entity: by the softmax of all scores, in Python and in files."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m3el_fast.calibrate import main as calibrate
from m3el_fast.calibration import CALIBRATION_FILE, Calibration
from m3el_fast.evaluate import main as evaluate
from m3el_fast.link import Linker
from m3el_fast.link import main as link
from m3el_fast.models import load_model
from trained import MENTIONS, Trained, failure, link_arguments, trained_in, write_mentions

TEXTS = [{key: record[key] for key in ("mention", "sentence")} for record in MENTIONS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield from trained_in(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def linker(trained: Trained) -> Linker:
    return Linker.from_pretrained(trained.checkpoint)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return write_mentions(tmp_path)


@pytest.fixture
def uncalibrated(trained: Trained, tmp_path: Path) -> Trained:
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    (run / "checkpoint" / CALIBRATION_FILE).unlink()
    return Trained(trained.data, run)


def read(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "links.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def softmax(links: list[dict[str, Any]], calibration: Calibration) -> list[float]:
    """Of these links and NIL, by hand."""
    assert calibration.nil_score is not None
    weights = [math.exp((link["score"] - calibration.nil_score) / calibration.temperature) for link in links]
    return [weight / (sum(weights) + 1) for weight in weights]


# -- training and the command -----------------------------------------------------------------------------------------


def test_training_calibrates_as_the_command_does(
    trained: Trained, uncalibrated: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    made = load_model(trained.checkpoint).calibration
    assert made is not None
    # nil and an entity that is not in the KB: neither has an answer
    assert (made.data, made.entities, made.mentions, made.nil) == ("TINY", 12, 26, 2)
    assert made.nil_score is not None and made.nil_threshold is not None
    assert load_model(uncalibrated.checkpoint).calibration is None
    calibrate([uncalibrated.checkpoint])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{trained.data}, dev: 24 mentions, left out: 1 nil, 1 not in the KB; KB: 12 entities"
    assert lines[-1] == f"calibration: {uncalibrated.checkpoint}/{CALIBRATION_FILE}"
    again = load_model(uncalibrated.checkpoint).calibration
    assert again is not None
    assert again.temperature == pytest.approx(made.temperature, rel=0.01)
    assert again.nil_score == pytest.approx(made.nil_score, abs=0.02 * made.temperature)
    assert again.model_dump(include={"mentions", "nil"}) == {"mentions": 26, "nil": 2}


def test_calibration_is_kept_with_the_checkpoint(trained: Trained, tmp_path: Path) -> None:
    model = load_model(trained.checkpoint)
    model.save_pretrained(tmp_path / "a")
    assert load_model(tmp_path / "a").calibration == model.calibration
    model.calibration = None
    model.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a" / CALIBRATION_FILE).exists()


def test_calibrate_refuses(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(calibrate, ["owner/model"], capsys)
    assert message.startswith("owner/model: expected a checkpoint folder, to write into, got no such folder. ")
    broken = Path(shutil.copytree(trained.checkpoint, tmp_path / "checkpoint"))
    (broken / CALIBRATION_FILE).write_text("[]")
    assert CALIBRATION_FILE in failure(evaluate, [str(broken)], capsys)
    (broken / CALIBRATION_FILE).unlink()
    (broken / CALIBRATION_FILE).mkdir()
    message = failure(calibrate, [str(broken)], capsys)
    assert message == f"{broken / CALIBRATION_FILE}: expected a file to write, got a folder"


# -- links ------------------------------------------------------------------------------------------------------------


def test_probabilities_are_a_softmax_of_all_entities_and_nil(linker: Linker) -> None:
    calibration = linker.model.calibration
    assert calibration is not None
    whole, few = linker.link(TEXTS, k=12), linker.link(TEXTS, k=2)
    for links, first in zip(whole, few, strict=True):
        expected = softmax(links, calibration)
        assert [one["probability"] for one in links] == pytest.approx(expected, rel=1e-4)
        assert 0 < sum(expected) < 1
        # how many are asked for does not matter
        assert [one["probability"] for one in first] == pytest.approx(expected[:2], rel=1e-3)


def test_of_candidates_they_are_a_softmax_of_these(linker: Linker) -> None:
    calibration = linker.model.calibration
    assert calibration is not None
    lists = [["Q3", "Q9", "Q3"], [], ["Q8", "Q9"], ["Q1"], None]
    found = linker.link(TEXTS, k=2, candidates=lists)
    for links, own in zip(found, lists, strict=True):
        if own is not None:
            assert [one["probability"] for one in links] == pytest.approx(softmax(links, calibration), rel=1e-4)
    assert (list(found[1]), found[1].entity) == ([], None)
    everything = linker.link(TEXTS, k=12)
    for links, all_links in zip(linker.link(TEXTS, k=3, candidates=12), everything, strict=True):
        expected = [one["probability"] for one in all_links[:3]]
        assert [one["probability"] for one in links] == pytest.approx(expected, rel=1e-3)


def test_mentions_below_the_threshold_have_no_entity(linker: Linker, monkeypatch: pytest.MonkeyPatch) -> None:
    best = [links[0]["probability"] for links in linker.link(TEXTS)]
    middle = sorted(best)[2]
    assert min(best) < middle < max(best)
    found = linker.link(TEXTS, nil_threshold=middle)
    assert [links.entity is None for links in found] == [probability < middle for probability in best]
    for links in found:
        assert links.entity in (None, links[0]["id"])
        assert len(links) == 10  # they are there all the same
    assert all(links.entity == links[0]["id"] for links in linker.link(TEXTS, nil_threshold=0))
    assert all(links.entity is None for links in linker.link(TEXTS, nil_threshold=1))
    assert json.loads(json.dumps(found)) == found
    # without one the calibration's counts
    assert linker.model.calibration is not None
    own = linker.model.calibration.model_copy(update={"nil_threshold": middle})
    monkeypatch.setattr(linker.model, "calibration", own)
    assert [links.entity for links in linker.link(TEXTS)] == [links.entity for links in found]


def test_the_command_writes_null(trained: Trained, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link(link_arguments(trained, work, "-k", "3", "--nil-threshold", "0"))
    written = read(work)
    assert [record["entity"] for record in written] == [record["links"][0]["id"] for record in written]
    best = [record["links"][0]["probability"] for record in written]
    assert all(0 < probability < 1 for probability in best)
    middle = (sorted(best)[2] + sorted(best)[3]) / 2
    capsys.readouterr()
    link(link_arguments(trained, work, "-k", "3", "--nil-threshold", str(middle)))
    none = [record["entity"] is None for record in read(work)]
    assert none == [probability < middle for probability in best]
    out = capsys.readouterr().out
    assert f"5 mentions linked to 12 entities, {sum(none)} of them to none (probability below {middle:.4g}): " in out


def test_a_threshold_is_refused_before_any_work(
    trained: Trained,
    uncalibrated: Trained,
    work: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(Linker, "from_pretrained")
    message = failure(link, link_arguments(uncalibrated, work, "--nil-threshold", "0.5"), capsys)
    assert message.startswith("--nil-threshold: expected a calibrated checkpoint, got one without calibration.json. ")
    (work / "mentions.jsonl").unlink()
    message = failure(link, link_arguments(trained, work, "--nil-threshold", "1.5"), capsys)
    assert message == "--nil-threshold: expected a probability, from 0 to 1, got 1.5"


def test_without_calibration(uncalibrated: Trained, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link(link_arguments(uncalibrated, work, "-k", "2"))
    assert capsys.readouterr().out.count("probabilities are null: the checkpoint is not calibrated") == 1
    for record in read(work):
        assert [one["probability"] for one in record["links"]] == [None, None]
        assert record["entity"] == record["links"][0]["id"]
    evaluate([uncalibrated.checkpoint])
    assert f"not calibrated: m3el calibrate {uncalibrated.checkpoint}" in capsys.readouterr().out


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_measures_it(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "metrics.json"
    evaluate([trained.checkpoint, "--output", str(output), "--nil-threshold", "0.05"])
    printed, record = capsys.readouterr().out, json.loads(output.read_text())
    found = record["calibration"]
    assert f"calibration: ECE {found['ece']:.4f}, NLL {found['nll']:.4f}" in printed
    assert found["mentions"] == 26 == sum(one["mentions"] for one in found["bins"])
    gaps = [one["mentions"] * abs(one["confidence"] - one["accuracy"]) for one in found["bins"]]
    assert found["ece"] == pytest.approx(sum(gaps) / 26)
    assert (found["nil"]["threshold"], found["nil"]["mentions"]) == (0.05, 2)
    nil = found["nil"]
    said = (
        f"no entity below 0.0500: {nil['dropped']} mentions, {nil['found']} of the 2 without an answer, {nil['lost']} "
    )
    assert said in printed
    assert f"answer; precision {nil['precision']:.4f}, recall {nil['recall']:.4f}, F1 {nil['f1']:.4f}; " in printed
