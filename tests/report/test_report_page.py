"""The evaluation report: a page that needs nothing else, whose numbers are the evaluation's, whatever names contain."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m3el_fast.data.layout import Mention
from m3el_fast.evaluate import main as evaluate
from m3el_fast.index import EntityIndex
from m3el_fast.index.__main__ import read_entities
from m3el_fast.link import Linker
from m3el_fast.metrics import HITS
from m3el_fast.models import load_model
from m3el_fast.report.cases import cases, marked
from m3el_fast.report.contents import MISSES, SHOWN, Choice, Miss, bearers, rank_histogram, worst
from m3el_fast.report.pictures import BYTES, SIDES, picture
from trained import Trained, failure, trained_in

VOID = {"meta", "img"}
HOSTILE = '</style><script>alert("1")</script><img src=x onerror=alert(1)> "\'& \u202e'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield from trained_in(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def shown(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, object]]:
    """A page and the metrics of the same call."""
    folder = tmp_path_factory.mktemp("report")
    arguments = ["--report", str(folder / "out.html"), "--output", str(folder / "metrics.json")]
    evaluate([trained.checkpoint, "--nil-threshold", "0.05", *arguments])
    return (folder / "out.html").read_text(encoding="utf-8"), json.loads((folder / "metrics.json").read_text())


class Parsed(HTMLParser):
    """Tags in order with their attributes, tables as lists of rows of cells, and all text; tags must be balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def cells(parsed: Parsed, number: int) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    return {row[0]: row[1:] for row in parsed.tables[number]}


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_its_numbers_are_those_of_the_evaluation(shown: tuple[str, dict[str, object]], trained: Trained) -> None:
    parsed, record = Parsed(shown[0]), json.loads(json.dumps(shown[1]))
    metrics, ranks, bins, facts, ambiguity, images = (cells(parsed, number) for number in range(6))
    names = {"full model": "union", "text only": "text", "image only": "image", "cross-modal only": "cross"}
    for title, name in names.items():
        found, own = metrics[title], record[name]
        assert found[: len(HITS)] == [f"{own['hits'][str(k)]:.4f}" for k in HITS]
        assert found[len(HITS) :] == [f"{own['mrr']:.4f}", f"{own['mr']:,.1f}"]
    union, trust = record["union"], record["calibration"]
    counts = [int(row[1]) for label, row in ranks.items() if label != "rank"]
    assert sum(counts) == union["count"] == 24
    assert counts[0] / 24 == pytest.approx(union["hits"]["1"])
    assert sum(counts[:3]) / 24 == pytest.approx(union["hits"]["3"])
    assert facts["expected calibration error (ECE)"] == [f"{trust['ece']:.4f}"]
    assert facts["negative log-likelihood of the answer"] == [f"{trust['nll']:.4f}"]
    assert facts["F1 of NIL"] == [f"{trust['nil']['f1']:.4f}"]
    nil = trust["nil"]
    assert facts["mentions linked to nothing"] == [str(nil["dropped"])]
    assert facts["of them without an answer (NIL)"] == [f"{nil['found']} of 2"]
    assert facts["of them with the answer as best entity"] == [str(nil["lost"])]
    rows = parsed.tables[2][1:]
    assert rows == [[str(b["mentions"]), f"{b['confidence']:.4f}", f"{b['accuracy']:.4f}"] for b in trust["bins"]]
    assert bins
    # every mention is called Elm, and so are all twelve entities
    assert ambiguity["6 to 20"][-1] == "24" and ambiguity["6 to 20"][1] == f"{union['hits']['1']:.1%}"
    assert {label: int(row[-1]) for label, row in images.items() if label != "with an image"} == by_hand(trained)
    assert sum(float(row[1].rstrip("%")) * int(row[-1]) for row in images.values() if "%" in row[1]) / 2400 == (
        pytest.approx(union["hits"]["1"], abs=1e-3)
    )


def by_hand(trained: Trained) -> dict[str, int]:
    counts = dict.fromkeys(("mention and entity", "mention alone", "entity alone", "neither"), 0)
    for record in json.loads((trained.data / "TINY_test.json").read_text())[:24]:
        mention, entity = bool(record["imgPath"]), int(record["answer"][1:]) < 10
        names = {(True, True): "mention and entity", (True, False): "mention alone", (False, True): "entity alone"}
        counts[names.get((mention, entity), "neither")] += 1
    return counts


def test_the_worst_misses_come_first(shown: tuple[str, dict[str, object]], trained: Trained) -> None:
    page, record = shown
    probabilities = linked(trained)
    misses = round(24 * (1 - record["union"]["hits"]["1"]))  # type: ignore[index]
    assert 0 < misses <= 50
    parsed = Parsed(page)
    assert sum(tag == "article" for tag, _ in parsed.tags) == misses
    ranks = [float(rank) for rank in re.findall(r"answer at rank <b>([\d.,]+)</b>", page)]
    assert len(ranks) == misses
    assert ranks == sorted(ranks, reverse=True)
    assert all(rank > 1 for rank in ranks)
    for case in page.split("<article")[1:]:
        assert case.count('class="choice') == 6  # the answer and the five best
        scores = [float(score) for score in re.findall(r"score (-?[\d.]+)", case)]
        assert scores[1:] == sorted(scores[1:], reverse=True)
        assert scores[1] >= scores[0]
        assert case.count("<li><span>text</span>") == 6
        assert re.findall(r"probability ([^<]+)<", case)[1:] in probabilities


def test_only_the_worst_are_shown_where_there_are_many(
    shown: tuple[str, dict[str, object]], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3el_fast.report.contents.MISSES", 2)
    evaluate([trained.checkpoint, "--nil-threshold", "0.05", "--report", str(tmp_path / "out.html")])
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    total = shown[0].count("<article")
    assert f"<p>All {total} mentions whose answer is not at rank 1, " in shown[0]
    assert f"<p>2 of {total} mentions whose answer is not at rank 1, " in page
    title = r'<h3 id="case-\d"><span class="soft">\d of \d+</span> (.*?)</p></div>'
    assert re.findall(title, page) == re.findall(title, shown[0])[:2]


def test_misses_that_are_linked_to_nothing_say_so(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where every mention of the split has an answer, and F1 of NIL would mean nothing."""
    data = trained.copy_data(tmp_path / "data")
    records = json.loads((data / "TINY_test.json").read_text())[:24]
    (data / "TINY_test.json").write_text(json.dumps(records))
    arguments = [trained.checkpoint, "--data", str(data), "--report", str(tmp_path / "out.html")]
    evaluate([*arguments, "--nil-threshold", "1", "--output", str(tmp_path / "metrics.json")])
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    facts = cells(Parsed(page), 3)
    right = round(24 * json.loads((tmp_path / "metrics.json").read_text())["calibration"]["accuracy"])
    assert facts["mentions linked to nothing"] == ["24"]
    assert facts["of them without an answer (NIL)"] == ["0 of 0"]
    assert facts["of them with the answer as best entity"] == [str(right)]
    assert page.count("</b>, linked to nothing") == page.count("<article") > 0
    assert "F1 of NIL" not in page
    assert f"no entity below 1.0000: 24 mentions, {right} whose best entity is" in capsys.readouterr().out
    probabilities = [float(found) for found in re.findall(r"1\.</span>.*?probability ([\d.]+)", page)]
    middle = sorted(probabilities)[len(probabilities) // 2] + 0.0005  # half of the last digit shown
    evaluate([*arguments, "--nil-threshold", str(middle)])
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    dropped = [", linked to nothing" in case for case in page.split("<article")[1:]]
    assert dropped == [probability < middle for probability in probabilities]
    assert 0 < sum(dropped) < len(dropped)


def linked(trained: Trained) -> list[list[str]]:
    """The probabilities of the best entities of each mention, as the linker gives them."""
    folder = trained.data / "mention_image"
    records = [
        {
            "mention": record["mentions"],
            "sentence": record["sentence"],
            "image": str(folder / record["imgPath"]) if record["imgPath"] else None,
        }
        for record in json.loads((trained.data / "TINY_test.json").read_text())
    ]
    found = Linker.from_pretrained(trained.checkpoint, trained.data).link(records, k=SHOWN)
    return [[f"{link['probability']:.3f}" for link in links] for links in found]


def test_without_calibration_and_with_an_index(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ids and names are the index's where the data set has no KB."""
    model = load_model(trained.checkpoint)
    entities = read_entities(model, trained.data, False, None)
    EntityIndex.build(
        model, entities.source, tmp_path / "index", ids=entities.ids, names=entities.names, progress=False
    )
    model.calibration = None
    model.save_pretrained(tmp_path / "checkpoint")
    data = trained.copy_data(tmp_path / "data")
    arguments = [str(tmp_path / "checkpoint"), "--data", str(data), "--index", str(tmp_path / "index")]
    evaluate(arguments)
    before = capsys.readouterr().out
    evaluate([*arguments, "--report", str(tmp_path / "a.html")])
    after = capsys.readouterr().out
    assert after == f"{before}report: {tmp_path / 'a.html'}\n"  # the report changes nothing
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "The checkpoint is not calibrated" in page and "· probability" not in page
    assert "Known for" in page and "data:image/jpeg" in page
    (data / "kb_entity.json").unlink()
    evaluate([*arguments, "--report", str(tmp_path / "b.html")])
    page = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "Known for" not in page and "Elm school" in page
    Parsed(page)


# -- the document -----------------------------------------------------------------------------------------------------


def test_it_asks_for_nothing_and_runs_nothing(shown: tuple[str, dict[str, object]]) -> None:
    parsed = Parsed(shown[0])
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in parsed.tags}
    assert not re.search(r"url\(|@import|https?:", shown[0])
    for attributes in (attributes for _, attributes in parsed.tags):
        assert not any(name.startswith("on") for name in attributes)
    for image in parsed.all("img"):
        source = image["src"] or ""
        assert source.startswith("data:image/jpeg;base64,") and image["alt"]
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            assert max(picture.size) <= SIDES["mention"]
    anchors = [(link["href"] or "")[1:] for link in parsed.all("a")]
    assert anchors and set(anchors) <= {attributes.get("id") for _, attributes in parsed.tags}
    assert parsed.all("html")[0]["lang"] == "en" and len(parsed.all("h1")) == 1
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in parsed.all("svg"))
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in parsed.all("meta"))


def test_names_are_text_whatever_they_contain(trained: Trained, tmp_path: Path) -> None:
    folder = trained.copy_data(tmp_path / HOSTILE.replace("/", "_"))
    for name in ("kb_entity.json", "TINY_test.json"):
        records = json.loads((folder / name).read_text())
        for record in records:
            for field in ("entity_name", "attr", "sentence", "mentions"):
                if field in record:
                    record[field] = f"{HOSTILE} {record[field]}\0\ud83d"
        (folder / name).write_text(json.dumps(records))
    (folder / "TINY_test.json").rename(folder / "<b>_test.json")
    checkpoint = shutil.copytree(trained.checkpoint, tmp_path / f"{folder.name} checkpoint")
    evaluate([str(checkpoint), "--data", str(folder), "--report", str(tmp_path / "out.html")])
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    parsed = Parsed(page)
    assert str(checkpoint) in parsed.text
    assert not parsed.all("script")
    assert "x" not in [image["src"] for image in parsed.all("img")]
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    assert "".join(parsed.text).count('<script>alert("1")</script>') > 10
    assert "<b>, test" in "".join(parsed.text)


def test_without_pictures(trained: Trained, tmp_path: Path) -> None:
    folder = trained.copy_data(tmp_path / "data")
    for path in [*folder.glob("*_image/*.jpg")][1:]:
        path.write_bytes(b"no picture") if "kb" in str(path) else path.unlink()
    evaluate([trained.checkpoint, "--data", str(folder), "--report", str(tmp_path / "out.html")])
    assert "no picture" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_it_is_written_whole_or_not_at_all(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.html"
    target.write_text("old")
    assert "expected a file to write, got a folder" in failure(
        evaluate, [trained.checkpoint, "--report", str(tmp_path)], capsys
    )
    message = failure(evaluate, [trained.checkpoint, "--report", str(target), "--output", str(target)], capsys)
    assert message == f"--report: expected another file than --output, got {target}"

    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("m3el_fast.evaluate.page", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate([trained.checkpoint, "--report", str(target)])
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.html"]


# -- parts ------------------------------------------------------------------------------------------------------------


def test_rank_histogram() -> None:
    ranks = torch.tensor([1, 1, 1.5, 2, 3.5, 5, 6, 1000, 1000.5, 90_000], dtype=torch.float64)
    expected = {"1": 2, "2": 2, "4 to 5": 2, "6 to 10": 1, "101 to 1,000": 1, "above 1,000": 2}
    assert {label: count for label, count in rank_histogram(ranks) if count} == expected


def test_the_worst_misses_have_the_highest_ranks() -> None:
    ranks = torch.tensor([1, 3, 40, 3, 1.5, 3, 1, 2.5], dtype=torch.float64)
    behind = torch.tensor([0, 0.25, 0.5, 2, 0, 0.25, 0, 9])
    assert worst(ranks, behind) == [2, 3, 1, 5, 7, 4]


def test_bearers_of_a_name() -> None:
    entities = [
        "Paul Ryan",
        "Ryan (given name)",
        "RYAN",
        "Bryan",
        "Ryan-Paul",
        "Saint Paul (Ryan)",
        "A\u030angstro\u0308m unit",  # letters and their marks apart
        "",
    ]
    mentions = ["ryan", "Paul Ryan", "Ryan Paul", "paul", "", "ångström", "(Ryan)", "unit Ångström", "---"]
    assert bearers(mentions, entities) == [4, 1, 1, 3, 0, 1, 4, 0, 0]


def test_a_picture_is_the_first_that_can_be_read(tmp_path: Path) -> None:
    """As the model saw it."""
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "blue.png")
    paths = [tmp_path / name for name in ("none.jpg", "broken.jpg", "red.png", "blue.png")]
    found = picture(paths, "entity")
    assert found is not None
    with Image.open(io.BytesIO(base64.b64decode(found.removeprefix("data:image/jpeg;base64,")))) as image:
        assert image.getpixel((4, 4)) == pytest.approx((255, 0, 0), abs=8)
    assert picture(paths[:2], "mention") is None
    assert picture([], "mention") is None


def test_a_page_is_small_whatever_its_pictures_show(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (220, 220, 1), dtype=np.uint8).repeat(3, axis=2) * 255
    for kind, side in SIDES.items():
        Image.fromarray(noise[:side, :side]).save(tmp_path / "noise.png")
        found = picture([tmp_path / "noise.png"], kind)
        assert found is not None and len(found) <= BYTES[kind] * 4 / 3 + 30  # base64, and what it begins with
    of_a_page = MISSES * (BYTES["mention"] + (1 + SHOWN) * BYTES["entity"]) * 4 / 3
    assert of_a_page < 3e6  # as the how-to page says


@pytest.mark.parametrize(("rank", "expected"), [(2.0, "2"), (1_234_567.0, "1,234,567"), (109_975.5, "109,975.5")])
def test_a_rank_is_shown_in_full(rank: float, expected: str) -> None:
    choice = Choice("Q1", "Elm", None, {"union": -1.0, "text": -2.0}, None, True)
    page = cases([Miss(Mention("1", "Elm", "", None, "Q1"), rank, choice, [choice], False)])
    assert f"answer at rank <b>{expected}</b>" in page
    assert "<span>image</span>" not in page  # the model has no such score


@pytest.mark.parametrize(
    ("sentence", "name", "expected"),
    [
        ("Started by Art", "art", "Started by <mark>Art</mark>"),
        ("Startled", "art", "St<mark>art</mark>led"),
        ("by\nSimon  Art.", "simon art", "by\n<mark>Simon  Art</mark>."),
        ("C++ (a <b>) & C", "(A <b>)", "C++ <mark>(a &lt;b&gt;)</mark> &amp; C"),
        ("nothing of it", "Elm", "nothing of it"),
        ("nothing", "", "nothing"),
        ("x" * 500 + " Elm " + "y" * 500, "Elm", "…" + "x" * 199 + " <mark>Elm</mark> " + "y" * 399 + "…"),
    ],
    ids=["whole word", "part", "white space", "escaped", "absent", "empty", "long"],
)
def test_the_mention_is_marked_in_its_sentence(sentence: str, name: str, expected: str) -> None:
    assert marked(sentence, name) == expected
