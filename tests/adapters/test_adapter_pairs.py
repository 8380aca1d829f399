"""Scores of pairs in no index: equal to the full matrix and to the linker's; records and pictures as they are meant."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.reranking_cases import NEAR, documents, full_matrix, queries, write_pictures
from index_cases import make_case
from m3el_fast.adapters import encoding
from m3el_fast.adapters.encoding import encode
from m3el_fast.adapters.pairs import open_model, score_pairs
from m3el_fast.adapters.records import parse_document, parse_query, pixels
from m3el_fast.errors import InputError
from m3el_fast.link import Linker
from m3el_fast.models import MELModel
from tiny import tiny_config, tiny_model

FORMS: dict[str, dict[str, Any]] = {
    "m3el": {},
    "mimic": {"type": "mimic"},
    "masked": {"token_mask": True, "pooling": "soft", "union": "released"},
    "text": {"image": False, "cross": False},
    "image": {"text": False, "cross": False},
    "cross": {"text": False, "image": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def model_of(folder: Path, form: str = "m3el") -> MELModel:
    return tiny_model(tiny_config(folder, FORMS[form])).eval()


def all_pairs(folder: Path) -> tuple[list[Any], list[Any]]:
    """6 queries x 6 documents, a query at a time."""
    left = [parse_query(record, "query") for record in queries(folder)]
    right = [parse_document(record, "document") for record in documents(folder)]
    return [query for query in left for _ in right], right * len(left)


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_those_of_the_full_matrix(form: str, folder: Path) -> None:
    model = model_of(folder, form)
    expected = full_matrix(model, folder)
    scores = score_pairs(model, *all_pairs(folder), batch_size=32).view(6, 6)
    assert scores.dtype == torch.float32
    assert scores.flatten().tolist() == pytest.approx(expected.flatten().tolist(), **NEAR)
    # equal queries and equal documents have bitwise equal scores, whatever files they came from
    assert torch.equal(scores[0], scores[5])
    assert torch.equal(scores[:, 0], scores[:, 5])
    assert len(scores.unique()) > 5


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_and_order_do_not_matter(batch_size: int, folder: Path) -> None:
    model = model_of(folder)
    left, right = all_pairs(folder)
    expected = score_pairs(model, left, right, batch_size=32)
    order = [*random.Random(batch_size).sample(range(36), 36), 7, 7]
    found = score_pairs(model, [left[i] for i in order], [right[i] for i in order], batch_size)
    assert found.tolist() == pytest.approx(expected[order].tolist(), **NEAR)
    assert found[-1] == found[-2] == found[order.index(7)]


def test_what_is_distinct_is_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 36 pairs: five query texts, four document texts; four pictures of queries as files and none, and so on."""
    model = model_of(folder)
    seen: dict[str, list[int]] = {"text": [], "image": []}
    text, image = model.encoder.model.text, model.encoder.model.image

    def count(name: str, real: Any) -> Any:
        def counted(first: torch.Tensor, *rest: torch.Tensor) -> Any:
            seen[name].append(len(first))
            return real(first, *rest)

        return counted

    monkeypatch.setattr(model.encoder.model, "text", count("text", text))
    monkeypatch.setattr(model.encoder.model, "image", count("image", image))
    score_pairs(model, *all_pairs(folder), batch_size=32)
    # red and its twin are two files; "no picture" is one more row of the vision tower
    assert seen == {"text": [5, 4], "image": [5, 5]}


def test_no_pairs(folder: Path) -> None:
    assert score_pairs(model_of(folder), [], [], 32).shape == (0,)


def test_scores_are_those_of_the_linker(tmp_path: Path) -> None:
    """Linker.link with candidates, on an index of the documents without rounding, gives the same scores and order."""
    case = make_case(tmp_path / "data")
    linker = Linker(case.model, index=case.build(dtype="fp32"))
    red, blue = (tmp_path / "data" / "mention_image" / f"{name}.jpg" for name in ("red", "blue"))
    mentions = [
        {"mention": "Elm", "sentence": "We saw the inn number 0", "image": red},
        {"mention": " Elm\n mill", "sentence": "A mill", "image": str(blue)},
        {"mention": "", "sentence": ""},
    ]
    candidates = [["Q3", "Q9", "Q8", "Q10", "Q0"], ["Q1", "Q11"], case.ids]
    links = linker.link(mentions, k=12, candidates=candidates)
    entity = {e.qid: e for e in case.data.kb.entities}
    for mention, own, found in zip(mentions, candidates, links, strict=True):
        record = {"text": mention["sentence"], "mention": mention["mention"], "image": mention.get("image")}
        given = [
            {"text": entity[i].attr, "name": entity[i].name, "image": (entity[i].images or (None,))[0]} for i in own
        ]
        scores = score_pairs(
            case.model,
            [parse_query(record, "query")] * len(own),
            [parse_document(one, "document") for one in given],
            32,
        ).tolist()
        by_id = dict(zip(own, scores, strict=True))
        assert [by_id[link["id"]] for link in found] == pytest.approx([link["score"] for link in found], **NEAR)
        assert len(found) == len(own)
        if "Q8" in own:  # identical but for their ids
            assert by_id["Q8"] == by_id["Q9"]


def test_features_that_are_not_finite_are_refused(folder: Path) -> None:
    model = model_of(folder)
    with torch.no_grad():
        model.encoder.image_local_proj.bias[0] = math.nan
    items = [parse_document("a", "document 1"), parse_document({"image": folder / "red.png"}, "document 2")]
    with pytest.raises(InputError, match=r"^document 1: expected finite features, got NaN or infinity in "):
        encode(model, items, "entity", 32)


def test_the_first_item_with_a_picture_whose_features_are_not_finite_is_named(folder: Path) -> None:
    model = model_of(folder, "image")
    last = torch.tensor([1])  # of the pictures "none" and red
    model.encoder.image_local_proj.register_forward_hook(lambda *call: call[-1].index_fill(0, last, math.nan))
    picture = {"image": folder / "red.png"}
    items = [parse_document(one, f"document {i}") for i, one in enumerate(["a", "b", picture, picture], 1)]
    with pytest.raises(InputError, match=r"^document 3: expected finite features, got NaN or infinity in "):
        encode(model, items, "entity", 32)


def test_autocast_changes_nothing(folder: Path) -> None:
    model, pairs = model_of(folder), all_pairs(folder)
    expected = score_pairs(model, *pairs, batch_size=32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(score_pairs(model, *pairs, batch_size=32), expected)


def test_other_dtypes_are_refused(folder: Path) -> None:
    model = model_of(folder)
    model.encoder.half()
    with pytest.raises(InputError, match=r"^model: expected weights in float32, got torch.float16. model.float\(\) "):
        score_pairs(model, *all_pairs(folder), batch_size=32)


def test_batch_size_is_checked(folder: Path) -> None:
    with pytest.raises(InputError, match="batch_size: expected at least 1, got 0"):
        score_pairs(model_of(folder), *all_pairs(folder), batch_size=0)


def test_a_bar_shows_what_is_encoded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(folder)
    score_pairs(model, *all_pairs(folder), batch_size=32)
    assert capsys.readouterr().err == ""
    score_pairs(model, *all_pairs(folder), batch_size=32, progress=True)
    shown = capsys.readouterr().err
    assert "encoding queries" in shown and "encoding documents" in shown


def test_open_model(folder: Path, tmp_path: Path) -> None:
    model = tiny_model(tiny_config(folder)).train()
    assert open_model(model) is model and not model.training
    model.save_pretrained(tmp_path / "checkpoint")
    opened = open_model(tmp_path / "checkpoint", "cpu")
    pairs = all_pairs(folder)
    assert torch.equal(score_pairs(opened, *pairs, batch_size=32), score_pairs(model, *pairs, batch_size=32))
    with pytest.raises(InputError, match="device: expected one of this machine"):
        open_model(model, "cuda:77")
    with pytest.raises(InputError, match="a checkpoint folder or a Hub name"):
        open_model(str(tmp_path / "nothing"))


# -- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ("as it stands", "as it stands"),
        ({"text": "a sentence"}, "a sentence"),
        ({"text": "a sentence", "mention": " a\n name "}, "a name [SEP] a sentence"),
        ({"text": None, "mention": "", "image": b"a file"}, " [SEP] "),
        ({"text": "cut \ud83d"}, "cut \ufffd"),
    ],
)
def test_texts_of_queries(record: Any, text: str) -> None:
    assert parse_query(record, "query").text == text
    if isinstance(record, dict):
        renamed = {"name" if field == "mention" else field: value for field, value in record.items()}
        assert parse_document(renamed, "document").text == text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (3, '^query: expected a string, a PIL image or a mapping of "text", "mention" and "image", got int'),
        (None, "^query: expected a string"),
        ({"text": 3}, "^query, field text: expected a string, got int"),
        ({"text": "a", "mention": ["b"]}, "^query, field mention: expected a string, got list"),
        ({"text": "a", "name": "b"}, '^query: expected the fields "text", "mention" and "image", got name'),
        ({"text": "a", "audio": "b", 3: 4}, "got 3, audio"),
        ({}, '^query: expected "text" or "image", got neither'),
        ({"mention": "a", "image": None}, "neither"),
        ({"image": "https://host/a.jpg"}, "^query, field image: expected a path.* got the URL https://host/a.jpg"),
        ({"image": "data:image/png;base64,AAAA"}, "got the URL data:image"),
        ({"image": np.zeros((4, 4, 3))}, "^query, field image: expected a path.* got ndarray.*fromarray"),
        ({"image": [Image.new("RGB", (2, 2))]}, "got list"),
        ({"image": ""}, "got ''"),
        ({"image": "a\0b"}, "expected a path"),
        ({"image": b"x" * 9}, "^query, field image: expected a readable image, got not an image of a known format"),
        ({"image": "missing.jpg"}, "^query, field image: expected a readable image, got missing.jpg: no such file"),
    ],
)
def test_bad_records_are_named(record: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pixels(parse_query(record, "query"), 16)


def test_a_document_has_a_name_and_no_mention() -> None:
    with pytest.raises(InputError, match='the fields "text", "name" and "image", got mention'):
        parse_document({"text": "a", "mention": "b"}, "document")


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1", "P", "I;16", "CMYK"])
def test_a_picture_is_the_same_as_file_as_bytes_and_opened(mode: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (33, 21, 4), dtype=np.uint8)
    picture = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(noise)
    picture = picture if mode == "I;16" else picture.convert(mode)
    path = tmp_path / "picture.tiff"
    picture.save(path)
    found = [
        pixels(parse_query({"image": image}, "query"), 16)
        for image in (path, str(path), path.read_bytes(), Image.open(path))
    ]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    assert found[0].shape == (16, 16, 3) and found[0].std() > 1


def test_a_truncated_picture_that_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"^query, field image: expected a readable image, got .*truncated"):
        pixels(parse_query(Image.open(path), "query"), 16)


def test_an_opened_picture_without_pixels() -> None:
    with pytest.raises(InputError, match=r"^query, field image: expected a readable image, got 0 x 5 pixels"):
        pixels(parse_query(Image.new("RGB", (0, 5)), "query"), 16)


def test_a_picture_that_is_not_there_is_said_before_anything_is_encoded() -> None:
    for parse in (parse_query, parse_document):
        with pytest.raises(InputError, match=r"^it, field image: expected a readable image, got no.jpg: no such file"):
            parse({"image": "no.jpg"}, "it")
    with pytest.raises(InputError, match=r" got x{255}: no such file$"):  # perhaps base64, which is long
        parse_query({"image": "x" * 9999}, "query")


def test_equal_opened_pictures_are_one(folder: Path) -> None:
    items = [parse_query({"image": Image.open(folder / "red.png")}, "query") for _ in range(3)]
    encoded, rows = encode(model_of(folder), items, "mention", 2)
    assert rows.tolist() == [0, 0, 0] and encoded.side.image_index.tolist() == [0]
    assert all(len(tensor) == 1 for tensor in [*encoded.side.item.values(), *encoded.side.visual.values()])


def test_distinct_keeps_the_order_of_first_use() -> None:
    first, rows = encoding._distinct(["b", "a", "b", "c", "a"])
    assert first == [0, 1, 3] and rows.tolist() == [0, 1, 0, 2, 1]
