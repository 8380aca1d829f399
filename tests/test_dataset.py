"""A data set behind an encoder: which image a batch gets, which keys are equal, which mentions have a gold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from m3el_fast.config import DataConfig
from m3el_fast.data.cache import ImageCache
from m3el_fast.data.tokenized import TokenizedSide
from m3el_fast.dataset import Dataset, cache_folder, load_dataset
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError
from tiny import tiny_config, tiny_model, write_tiny


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3EL_CACHE", str(tmp_path / "cache"))


# -- TokenizedSide ----------------------------------------------------------------------------------------------------


def letters(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask [n, 6]: one token a letter."""
    ids = torch.tensor([[ord(letter) for letter in text[:6].ljust(6)] for text in texts])
    return ids, (ids != ord(" ")).long()


def make_side(tmp_path: Path, texts: Sequence[str], images: Sequence[Sequence[str]]) -> TokenizedSide:
    """Each distinct name is an image of its own grey, but ``bad`` is no image."""
    paths = [[tmp_path / f"{name}.png" for name in names] for names in images]
    distinct = sorted({path for row in paths for path in row})
    for number, path in enumerate(distinct):
        if path.stem == "bad":
            path.write_bytes(b"no picture")
        else:
            Image.new("RGB", (4, 4), (number, number, number)).save(path)
    cache = ImageCache.build(distinct, 4, tmp_path / "c", strict=False, workers=1, progress=False)
    return TokenizedSide(texts, paths, letters, cache)


@pytest.mark.parametrize("count", [*range(1, 12), 97])
def test_every_image_is_drawn_equally_often(count: int, tmp_path: Path) -> None:
    side = make_side(tmp_path, ["one", "two"], [["z"], [f"{i:03}" for i in range(count)]])
    rows = [side.cache.row(tmp_path / f"{i:03}.png") for i in range(count)]
    draws = 100 * count
    share = (torch.arange(draws) + 0.5) / draws
    drawn = Counter(side.image_rows(torch.ones(draws, dtype=torch.int64), share).tolist())
    assert drawn == dict.fromkeys(rows, 100)
    zero_one = torch.tensor([0.0, torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()])
    assert side.image_rows(torch.ones(2, dtype=torch.int64), zero_one).tolist() == [rows[0], rows[-1]]


def test_a_share_that_rounds_up_to_the_count_stays_inside(tmp_path: Path) -> None:
    side = make_side(tmp_path, ["one", "two"], [["a", "b", "c"], ["d"]])
    almost = torch.tensor([torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()] * 2)
    # a lower precision than rand()'s makes the product round up to the count itself
    for share in (almost, almost.half(), almost.bfloat16()):
        rows = side.image_rows(torch.tensor([0, 1]), share)
        assert rows.tolist() == [side.cache.row(tmp_path / "c.png"), side.cache.row(tmp_path / "d.png")]


def test_items_without_a_usable_image(tmp_path: Path) -> None:
    side = make_side(tmp_path, list("abcd"), [[], ["bad"], ["bad", "x"], ["x", "bad", "y"]])
    x, y = (side.cache.row(tmp_path / f"{name}.png") for name in "xy")
    everything = torch.arange(4)
    assert side.image_rows(everything).tolist() == side.image_key.tolist() == [-1, -1, x, x]
    assert side.image_rows(everything, torch.full((4,), 0.9)).tolist() == [-1, -1, x, y]
    assert side.distinct_images().tolist() == sorted([-1, x, y])
    none = make_side(tmp_path, list("ab"), [[], []])
    assert none.image_rows(torch.tensor([1, 0]), torch.rand(2)).tolist() == [-1, -1]
    assert none.distinct_images().tolist() == [-1]
    inputs = none.inputs(torch.tensor([1, 0]))
    assert (inputs.pixels.shape, inputs.image_index.tolist()) == ((0, 4, 4, 3), [-1, -1])


def test_inputs_of_a_batch(tmp_path: Path) -> None:
    side = make_side(tmp_path, ["one", "two", "three"], [["a", "b"], [], ["b"]])
    rows = torch.tensor([2, 0, 1, 0])
    inputs = side.inputs(rows, torch.tensor([0.0, 0.9, 0.5, 0.1]))
    ids, mask = letters(["three", "one", "two", "one"])
    assert torch.equal(inputs.input_ids, ids)
    assert torch.equal(inputs.attention_mask, mask)
    assert (inputs.input_ids.dtype, inputs.attention_mask.dtype) == (torch.int64, torch.int64)
    greys = [-1 if i < 0 else int(inputs.pixels[i, 0, 0, 0]) for i in inputs.image_index]
    assert greys == [1, 1, -1, 0]
    assert len(inputs.pixels) == 2


def test_keys_are_equal_exactly_where_the_inputs_are(tmp_path: Path) -> None:
    texts = ["house", "houses", "house", "houses and more", "mill", "house"]
    side = make_side(tmp_path, texts, [["a"], ["a", "b"], ["b"], [], ["b", "a"], []])
    ids = side.inputs(torch.arange(6)).input_ids
    for i in range(6):
        for j in range(6):
            assert (side.text_key[i] == side.text_key[j]).item() == torch.equal(ids[i], ids[j])
    # texts alike but for what was cut off are one input
    assert side.text_key[1] == side.text_key[3]
    images = side.image_key.tolist()
    assert images[0] == images[1] != images[2] == images[4]
    assert images[3] == images[5] == -1


def test_texts_beyond_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3el_fast.data.tokenized._CHUNK", 2)
    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    side = make_side(tmp_path, texts, [[]] * 5)
    assert torch.equal(side.input_ids.long(), letters(texts)[0])
    assert len(side) == 5


# -- load_dataset -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "data", mentions=5)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_model(tiny_config(Path("unused"))).encoder


def load(folder: Path, encoder: Encoder, **config: Any) -> Dataset:
    return load_dataset(DataConfig(**config), folder, encoder, ["train", "test"], progress=False)


def answers(folder: Path, *given: str) -> None:
    """Replace the test split by mentions with these answers."""
    records = json.loads((folder / "TINY_test.json").read_text())[:1]
    rewritten = [records[0] | {"id": f"m{i}", "answer": answer} for i, answer in enumerate(given)]
    (folder / "TINY_test.json").write_text(json.dumps(rewritten))


def test_golds_and_what_is_left_out(folder: Path, encoder: Encoder) -> None:
    answers(folder, "Q3", "nil", "Q77", "Q0", " NIL ", "Q11", "Q78")
    data = load(folder, encoder)
    split = data.splits["test"]
    assert [mention.id for mention in split.mentions] == ["m0", "m3", "m5"]
    assert split.gold.tolist() == [3, 0, 11]
    assert [data.kb.entities[row].qid for row in split.gold] == ["Q3", "Q0", "Q11"]
    assert (split.nil, split.absent, len(split.source)) == (2, 2, 3)
    assert split.describe() == "3 mentions, left out: 2 nil, 2 not in the KB"
    assert data.splits.keys() == {"train", "test"}
    assert (len(data.entities), data.images) == (12, "")
    answers(folder, "Q3")
    assert load(folder, encoder).splits["test"].describe() == "1 mentions"


def test_golds_are_rows_of_the_file_not_ids(folder: Path, encoder: Encoder) -> None:
    entities = json.loads((folder / "kb_entity.json").read_text())
    (folder / "kb_entity.json").write_text(json.dumps(entities[::-1]))
    answers(folder, "Q3", "Q0")
    assert load(folder, encoder).splits["test"].gold.tolist() == [8, 11]


def test_strict_refuses_an_absent_answer_but_no_nil(folder: Path, encoder: Encoder) -> None:
    train = json.loads((folder / "TINY_train.json").read_text())
    (folder / "TINY_train.json").write_text(json.dumps([m for m in train if m["answer"] != "Q999"]))
    answers(folder, "Q3", "nil")
    assert load(folder, encoder, strict=True).splits["test"].nil == 1
    answers(folder, "Q3", "nil", "Q77", "Q78")
    with pytest.raises(InputError) as refusal:
        load(folder, encoder, strict=True)
    expected = "expected an answer that is in kb_entity.json or nil, got Q77 (2 such)"
    assert str(refusal.value) == f"{folder}, split test, mention m2: {expected}"


@pytest.mark.parametrize("given", [(), ("nil",), ("nil", "Q99", "Q98")])
def test_a_split_without_any_gold(given: tuple[str, ...], folder: Path, encoder: Encoder) -> None:
    answers(folder, *given)
    with pytest.raises(InputError) as refusal:
        load(folder, encoder)
    expected = f"expected a mention whose answer is in the KB, got none of {len(given)}"
    assert str(refusal.value) == f"{folder}, split test: {expected}"


def test_both_texts_of_an_entity(folder: Path, encoder: Encoder) -> None:
    for context, text in (("attr", "Elm mill [SEP] Known for mill 2"), ("desc", "Elm mill [SEP] A blue mill")):
        inputs = load(folder, encoder, entity_text=context).entities.inputs(torch.tensor([10]))
        assert torch.equal(inputs.to("cpu").input_ids, encoder.tokenize([text])[0])


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("M3EL_CACHE", str(tmp_path / "m"))
    assert cache_folder() == tmp_path / "m"
    monkeypatch.delenv("M3EL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "m3el_fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "m3el_fast"


def test_the_second_load_decodes_nothing(folder: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(folder, encoder).entities.inputs(torch.arange(12))

    def decode(data: bytes, size: int) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("m3el_fast.data.cache_store.decode_image", decode)
    second = load(folder, encoder).entities.inputs(torch.arange(12))
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(second, name)), name
