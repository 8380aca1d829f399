"""Linking: the command and the class agree with the full matrix, whatever the mentions and their images are like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from m3el_fast.data.layout import mention_text, read_kb
from m3el_fast.dataset import kb_source, mention_source, open_images
from m3el_fast.errors import InputError
from m3el_fast.features import Scores
from m3el_fast.index import EntityIndex
from m3el_fast.link import COMPONENTS, Linker
from m3el_fast.link import main as link
from m3el_fast.link_input import parse_mention
from m3el_fast.matching import Side
from m3el_fast.models import load_model
from m3el_fast.scorer import Scorer, TopK
from tiny import tiny_config, tiny_model
from trained import MENTIONS, Trained, failure, link_arguments, trained_in, write_mentions


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield from trained_in(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def linker(trained: Trained) -> Linker:
    return Linker.from_pretrained(trained.checkpoint)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return write_mentions(tmp_path)


def read(work: Path) -> list[dict[str, Any]]:
    text = (work / "links.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def in_folder(work: Path) -> list[dict[str, Any]]:
    """The records with absolute image paths, as a caller in Python gives them."""
    return [r | {"image": work / r["image"]} if r.get("image") else r for r in MENTIONS]


Links = list[dict[str, Any]]


def numbers(links: Links) -> list[float]:
    """All scores of a mention's links, in order."""
    found = [[link["score"], *(link["components"][name] for name in COMPONENTS)] for link in links]
    return [score for scores in found for score in scores]


def same(one: Links, other: Links) -> bool:
    """Equal but for what fp32 sums of another order, or place in a block, do to scores; Q9 is Q8's twin."""
    ids = [[link["id"].replace("Q9", "Q8") for link in links] for links in (one, other)]
    return ids[0] == ids[1] and numbers(one) == pytest.approx(numbers(other), rel=1e-4, abs=1e-4)


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_the_command_writes_each_mention_with_its_links(
    trained: Trained, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link(link_arguments(trained, work, "-k", "3"))
    assert capsys.readouterr().out.splitlines() == [f"5 mentions linked to 12 entities: {work / 'links.jsonl'}"]
    written = read(work)
    assert [{key: r[key] for key in r if key not in ("entity", "links")} for r in written] == MENTIONS
    names = {e["qid"]: e["entity_name"] for e in json.loads((trained.data / "kb_entity.json").read_text())}
    for record in written:
        assert len(record["links"]) == 3
        for found in record["links"]:
            assert found.keys() == {"id", "name", "score", "probability", "components"}
            assert found["name"] == names[found["id"]]
            assert tuple(found["components"]) == COMPONENTS == ("text", "image", "t2v", "v2t")
            text, image, t2v, v2t = (found["components"][name] for name in COMPONENTS)
            assert found["score"] == pytest.approx((text + image + (t2v + v2t) / 2) / 3, rel=1e-5)
        scores = [found["score"] for found in record["links"]]
        assert scores == sorted(scores, reverse=True)
    assert not same(written[0]["links"], written[4]["links"])  # they differ by their images alone


def test_the_class_equals_the_command(trained: Trained, work: Path, linker: Linker) -> None:
    link(link_arguments(trained, work, "-k", "3", "--kb", str(trained.data)))
    links = linker.link(in_folder(work), k=3)
    assert all(same(found, record["links"]) for found, record in zip(links, read(work), strict=True))


def test_links_are_those_of_the_full_matrix(trained: Trained, work: Path) -> None:
    model, kb = load_model(trained.checkpoint), read_kb(trained.data, "attr")
    mentions = [parse_mention(record, "test") for record in in_folder(work)]
    paths = [path for e in kb.entities for path in e.images] + [m.image for m in mentions if m.image]
    cache = open_images(paths, model.encoder, True, False)
    with torch.inference_mode():
        source = kb_source(kb, model.config.data, model.encoder, cache)
        sides = [source, mention_source(mentions, model.encoder, cache)]
        scores: Scores = model.matcher(*(model.features(side.inputs(torch.arange(len(side)))) for side in sides))
    ids = [entity.qid for entity in kb.entities]
    index = EntityIndex.build(model, source, ids=ids, dtype="fp32", precision="fp32", progress=False)
    links = Linker(model, index=index).link(in_folder(work), k=12)
    near = {"rel": 1e-4, "abs": 1e-4}  # fp32 in products of other shapes
    for i, found in enumerate(links):
        rows = [kb.row[answer["id"]] for answer in found]
        assert sorted(rows) == list(range(12))
        assert [answer["score"] for answer in found] == pytest.approx(scores.union[i, rows].tolist(), **near)
        order = scores.union[i].sort(descending=True, stable=True)
        assert [answer["score"] for answer in found] == pytest.approx(order.values.tolist(), **near)
        assert abs(rows.index(9) - rows.index(8)) == 1  # twins but for their id
        for name in COMPONENTS:
            expected = getattr(scores, name)[i, rows].tolist()
            assert [answer["components"][name] for answer in found] == pytest.approx(expected, **near)


@pytest.mark.parametrize("k", [12, 13, 1000])
def test_more_links_than_entities(k: int, trained: Trained, work: Path, linker: Linker) -> None:
    link(link_arguments(trained, work, "-k", str(k)))
    assert [len(record["links"]) for record in read(work)] == [12] * 5
    assert [len(found) for found in linker.link(MENTIONS[1:2], k)] == [12]


def test_blocks_do_not_matter(work: Path, linker: Linker, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = linker.link(in_folder(work))
    monkeypatch.setattr(Scorer, "batch", 2)
    assert all(same(one, other) for one, other in zip(whole, linker.link(in_folder(work)), strict=True))


def test_a_form_without_v2t_has_none(trained: Trained, tmp_path: Path) -> None:
    for model in ({"type": "mimic"}, {"cross": False}):
        tiny_model(tiny_config(trained.data, model)).save_pretrained(tmp_path / "checkpoint")
        ((best,),) = Linker.from_pretrained(tmp_path / "checkpoint").link([{"mention": "Elm", "sentence": "x"}], k=1)
        lacking = {"v2t"} if model.get("type") else {"t2v", "v2t"}
        assert {name for name, score in best["components"].items() if score is None} == lacking


CANDIDATES: list[list[str] | None] = [["Q3", "Q9", "Q3"], None, [], ["Q8", "Q9", "Q1", "Q2", "Q5"], ["Q11"]]


def expected_of_candidates(linker: Linker, work: Path, k: int) -> list[Links]:
    """From the links to all entities those to the candidates."""
    everything = linker.link(in_folder(work), k=12)
    limited = (
        [link for link in links if own is None or link["id"] in own]
        for links, own in zip(everything, CANDIDATES, strict=True)
    )
    return [links[:k] for links in limited]


def test_candidates(trained: Trained, work: Path, linker: Linker) -> None:
    expected = expected_of_candidates(linker, work, 4)
    assert [len(links) for links in expected] == [2, 4, 0, 4, 1]
    given = linker.link(in_folder(work), 4, CANDIDATES)
    own = [
        record if ids is None else record | {"candidates": ids}
        for record, ids in zip(in_folder(work), CANDIDATES, strict=True)
    ]
    lines = [json.dumps(record | {"image": str(record.get("image") or "")}) for record in own]
    (work / "mentions.jsonl").write_text("\n".join(lines))
    link(link_arguments(trained, work, "-k", "4"))
    written = read(work)
    assert [record.get("candidates") for record in written] == CANDIDATES
    for links in (given, linker.link(own, 4), [record["links"] for record in written]):
        assert all(same(one, other) for one, other in zip(links, expected, strict=True))
    # the argument takes the place of what the mappings say
    assert all(
        same(one, other)
        for one, other in zip(linker.link(own, 4, [None] * 5), linker.link(in_folder(work), 4), strict=True)
    )


def test_a_number_of_candidates(trained: Trained, work: Path, linker: Linker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all entities as candidates the links are the exact ones; mentions with ids of their own keep these."""
    given: list[object] = []
    real = Scorer.topk

    def topk(self: Scorer, mentions: Side, k: int, candidates: Any = None, *more: Any) -> TopK:
        named = (
            [[linker.index.ids[row] for row in own.tolist()] for own in candidates]
            if isinstance(candidates, list)
            else candidates
        )
        given.append(named)
        return real(self, mentions, k, candidates, *more)

    monkeypatch.setattr(Scorer, "topk", topk)
    records = in_folder(work)
    limited = [records[0] | {"candidates": ["Q3", "Q9"]}, *records[1:]]
    expected = linker.link(limited, 4), linker.link(records, 4)
    given.clear()
    found = linker.link(limited, 4, candidates=12), linker.link(records, 4, candidates=12)
    assert given == [12, [["Q3", "Q9"]], 12]
    for one, other in zip(found, expected, strict=True):
        assert all(same(*links) for links in zip(one, other, strict=True))
    assert [len(links) for links in linker.link(records, 100, candidates=100)] == [12] * 5
    assert [len(links) for links in linker.link(records, 2, candidates=2)] == [2] * 5
    given.clear()
    link(link_arguments(trained, work, "-k", "4", "--candidates", "12"))
    assert given == [12]
    assert all(same(record["links"], links) for record, links in zip(read(work), expected[1], strict=True))


def test_an_index_in_place_of_a_kb(
    trained: Trained, work: Path, linker: Linker, capsys: pytest.CaptureFixture[str]
) -> None:
    model, kb = load_model(trained.checkpoint), read_kb(trained.data, "attr")
    cache = open_images([path for e in kb.entities for path in e.images], model.encoder, True, False)
    source = kb_source(kb, model.config.data, model.encoder, cache)
    ids, names = [e.qid for e in kb.entities], [e.name for e in kb.entities]
    EntityIndex.build(model, source, work / "index", ids=ids, names=names, progress=False)
    link(link_arguments(trained, work, "--index", str(work / "index")))
    assert capsys.readouterr().out.splitlines() == [f"5 mentions linked to 12 entities: {work / 'links.jsonl'}"]
    expected = linker.link(in_folder(work))
    opened = Linker.from_pretrained(trained.checkpoint, index=work / "index")
    for links in ([record["links"] for record in read(work)], opened.link(in_folder(work))):
        assert all(same(one, other) for one, other in zip(links, expected, strict=True))
        assert [[link["name"] for link in one] for one in links] == [[link["name"] for link in one] for one in expected]


def test_no_mentions(trained: Trained, work: Path, linker: Linker, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("", "\n\n  \n"):
        (work / "mentions.jsonl").write_text(content)
        link(link_arguments(trained, work))
        assert (work / "links.jsonl").read_bytes() == b""
        assert "0 mentions linked to 12 entities" in capsys.readouterr().out
    assert linker.link([]) == []


def test_half_characters_and_a_byte_order_mark(trained: Trained, work: Path, linker: Linker) -> None:
    """A text that was cut inside a surrogate pair comes back as it came; the model reads a replacement character."""
    line = r'{"mention": "Elm \ud83d", "sentence": "cut \ud83d", "image": "\ud83d.jpg"}'
    (work / "mentions.jsonl").write_text("\ufeff" + line, encoding="utf-8")
    link(link_arguments(trained, work, "-k", "2"))
    (record,) = read(work)
    links = record.pop("links")
    assert record.pop("entity") == links[0]["id"]
    assert record == json.loads(line)
    assert same(links, linker.link([{"mention": "Elm \ufffd", "sentence": "cut \ufffd"}], k=2)[0])


def test_mentions_of_a_data_set_as_they_are(trained: Trained, work: Path, linker: Linker) -> None:
    """What is imported can be linked: answers and splits come back, and images may be in another folder."""
    own = [{**MENTIONS[0], "answer": "Q3", "split": "test"}, {**MENTIONS[1], "answer": None}]
    (work / "texts").mkdir()
    path = work / "texts" / "mentions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in own), encoding="utf-8")
    link([*link_arguments(trained, work, "-k", "3", "--images", str(work)), "--input", str(path)])
    written = read(work)
    assert [{key: r[key] for key in r if key not in ("entity", "links")} for r in written] == own
    for links in (
        linker.link(in_folder(work)[:2], k=3),
        linker.link([{**in_folder(work)[0], **own[0], "image": work / "red.jpg"}, own[1]], k=3),
    ):
        assert all(same(found, record["links"]) for found, record in zip(links, written, strict=True))


# -- images -----------------------------------------------------------------------------------------------------------


def test_unusable_images_of_mentions_are_counted(
    trained: Trained, work: Path, linker: Linker, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "red.jpg").write_bytes(b"no picture")
    (work / "sub" / "blue.png").unlink()
    link(link_arguments(trained, work, "-k", "4"))
    last = capsys.readouterr().out.splitlines()[-1]
    problem = f"first: {work / 'red.jpg'}: not an image of a known format"
    assert last == f"1 of 2 images missing and 1 of 2 images unreadable, {problem}"
    written = read(work)
    (without,) = linker.link([{**MENTIONS[0], "image": None}], k=4)
    assert same(written[0]["links"], without)
    assert same(written[4]["links"], without)
    with pytest.warns(UserWarning, match=f"^1 of 1 images unreadable, {problem}$"):
        (found,) = linker.link([{**MENTIONS[0], "image": work / "red.jpg"}], k=4)
    assert same(found, without)


def test_unusable_images_of_entities_are_counted(
    trained: Trained, work: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    kb = trained.copy_data(tmp_path_factory.mktemp("kb") / "kb")
    (kb / "kb_image" / "white.jpg").unlink()
    link(link_arguments(trained, work, "--kb", str(kb)))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"1 of 4 images missing, first: {kb / 'kb_image' / 'white.jpg'}: no such file"
    message = failure(link, link_arguments(trained, work, "--kb", str(kb), "--strict-images"), capsys)
    assert message.startswith(f"{kb / 'kb_image' / 'white.jpg'}: expected a readable image, got no such file")


@pytest.mark.parametrize("kind", ["missing", "corrupt"])
def test_strict_images_of_mentions(kind: str, trained: Trained, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "links.jsonl").write_text("old")
    if kind == "missing":
        (work / "red.jpg").unlink()
    else:
        (work / "red.jpg").write_bytes((work / "red.jpg").read_bytes()[:200])
    message = failure(link, link_arguments(trained, work, "--strict-images"), capsys)
    assert message.startswith(f"{work / 'red.jpg'}: expected a readable image, got ")
    assert (work / "links.jsonl").read_text() == "old"
    strict = Linker.from_pretrained(trained.checkpoint, strict_images=True)
    with pytest.raises(InputError, match=r"red\.jpg: expected a readable image"):
        strict.link(in_folder(work))


# -- records ---------------------------------------------------------------------------------------------------------


def test_the_text_of_a_mention_is_that_of_the_data_sets() -> None:
    found = parse_mention({"mention": " Elm \n  mill ", "sentence": "by the water"}, "test", Path("folder"))
    assert (mention_text(found), found.image, found.answer) == ("Elm mill [SEP] by the water", None, None)
    found = parse_mention({"mention": "x", "sentence": "", "image": "a/b.jpg", "id": 3}, "test", Path("folder"))
    assert (found.image, found.id) == (Path("folder/a/b.jpg"), "3")
    assert parse_mention({"mention": "x", "sentence": "", "image": "/b.jpg"}, "t", Path("f")).image == Path("/b.jpg")
