"""Encoding in pieces equals the entity side of the whole KB, and no text or image goes through a tower twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from m3el_fast import encode
from m3el_fast.data.tokenized import TokenizedSide
from m3el_fast.dataset import load_dataset
from m3el_fast.encode import KBEncoder, Source
from m3el_fast.encoder.towers import Towers
from m3el_fast.features import Vectors
from m3el_fast.frozen import freeze
from m3el_fast.models import MELModel
from tiny import tiny_config, tiny_model, write_tiny

FORMS: dict[str, dict[str, Any]] = {
    "m3el": {},
    "t2v-form": {"cross_form": "t2v", "union": "released"},
    "t2v": {"directions": "t2v"},
    "v2t": {"directions": "v2t"},
    "masked": {"token_mask": True},
    "independent": {"intra_modal": "independent"},
    "without-text": {"text": False},
    "without-image": {"image": False},
    "without-cross": {"cross": False},
    "text": {"image": False, "cross": False},
    "image": {"text": False, "cross": False},
    "cross": {"text": False, "image": False},
    "mimic": {"type": "mimic"},
    "mimic-masked": {"type": "mimic", "token_mask": True},
}
# fp32: the order of sums differs by kernel and by the shape of a batch; features after LayerNorm are about 1
FP32 = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve entities, eight texts and four images (none, and three colours); 8 and 9 are equal in both.

    3, 7 and 10 have the text of 0: two with its image, one without.
    """
    folder = write_tiny(tmp_path_factory.mktemp("tiny") / "data", mentions=12)
    entities = json.loads((folder / "kb_entity.json").read_text())
    for row, images in ((3, ["red.jpg"]), (7, ["red.jpg"]), (10, [])):
        text = {name: entities[0][name] for name in ("entity_name", "attr", "desc")}
        entities[row] |= text | {"image_list": images}
    (folder / "kb_entity.json").write_text(json.dumps(entities))
    return folder


def prepare(folder: Path, form: str = "m3el", dt: int | None = None) -> tuple[MELModel, TokenizedSide]:
    config = tiny_config(folder, FORMS[form])
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"dt": dt, "max_text_tokens": 40})})
    model = tiny_model(config).eval()
    source = load_dataset(config.data, folder, model.encoder, ["test"], progress=False).entities
    assert isinstance(source, TokenizedSide)
    return model, source


def whole(model: MELModel, source: Source, rows: Tensor) -> Vectors:
    """The entity side of ``rows``, one row per item."""
    with torch.inference_mode():
        side = model.entity_side(source.inputs(rows)).map(lambda tensor: tensor)
    return side.item | {f"visual.{name}": tensor for name, tensor in side.visual.items()}


class Sorted:
    """The order in which an index is built: by text, then image."""

    def __init__(self, source: Source) -> None:
        self.keys, image_of = source.image_key.unique(return_inverse=True)
        by_image = image_of.argsort(stable=True)
        self.rows = by_image[source.text_key[by_image].argsort(stable=True)]
        self.image_of = image_of[self.rows]


def joined(pieces: list[tuple[slice, Vectors]], start: int, stop: int) -> Vectors:
    """All of some pieces, which must follow each other from ``start`` to ``stop``."""
    bounds = [place for piece, _ in pieces for place in (piece.start, piece.stop)]
    assert [start, *bounds[1:-1:2], stop] == [*bounds[::2], stop]
    assert bounds[-1:] == [stop]
    for piece, vectors in pieces:
        assert {len(tensor) for tensor in vectors.values()} <= {piece.stop - piece.start}
    names = pieces[0][1].keys()
    return {name: torch.cat([vectors[name] for _, vectors in pieces]) for name in names}


def encoded(encoder: KBEncoder, source: Source) -> Vectors:
    """Images, then items, one row per item in the order of :class:`Sorted`."""
    order = Sorted(source)
    images = list(encoder.images(order.keys))
    visual = joined([(piece, values) for piece, values, _ in images], 0, len(order.keys))
    context = joined([(piece, values) for piece, _, values in images], 0, len(order.keys))

    def some(places: Tensor) -> Vectors:
        return {name: tensor[places] for name, tensor in context.items()}

    pieces = list(encoder.items(order.rows, order.image_of, some))
    item = joined(pieces, 0, len(order.rows))
    return item | {f"visual.{name}": tensor[order.image_of] for name, tensor in visual.items()}


def assert_close(found: Vectors, expected: Vectors, **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(params=[1, 4, 16], ids=lambda n: f"batch{n}")
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(encode._BATCH, "cpu", request.param)
    return int(request.param)


@pytest.mark.usefixtures("batch")
@pytest.mark.parametrize("form", FORMS)
def test_pieces_equal_the_whole(folder: Path, form: str) -> None:
    model, source = prepare(folder, form)
    found = encoded(KBEncoder(model, source, precision="fp32"), source)
    assert_close(found, whole(model, source, Sorted(source).rows), **FP32)


def test_a_text_projection_of_its_own(folder: Path) -> None:
    model, source = prepare(folder, dt=20)
    found = encoded(KBEncoder(model, source, precision="fp32"), source)
    assert found["text.global"].shape[1] == 20
    assert_close(found, whole(model, source, Sorted(source).rows), **FP32)


@pytest.mark.usefixtures("batch")
@pytest.mark.parametrize("form", ["m3el", "mimic", "text", "image"])
def test_stored_tower_outputs(folder: Path, form: str, tmp_path: Path) -> None:
    model, _ = prepare(folder, form)
    data = load_dataset(model.config.data, folder, model.encoder, ["test"], progress=False)
    source = freeze(model, data, tmp_path / "features", progress=False).entities
    found = encoded(KBEncoder(model, source), source)
    assert_close(found, whole(model, source, Sorted(source).rows), **FP32)


def test_auto_is_bf16_where_it_is_fast(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = prepare(folder)
    for fast, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        encoder = KBEncoder(model, source)
        assert encoder.precision == expected
        automatic, chosen = encoded(encoder, source), encoded(KBEncoder(model, source, precision=expected), source)
        assert all(torch.equal(value, chosen[name]) for name, value in automatic.items())


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", FP32), ("bf16", {"rtol": 0.05, "atol": 0.05})])
def test_towers_that_are_not_packed(
    folder: Path,
    precision: Literal["fp32", "bf16"],
    tolerance: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, or in a PyTorch without oneDNN; bf16 by autocast, residual stream included, so up to 5% of a value
    of about 1."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model, source = prepare(folder)
    expected = whole(model, source, Sorted(source).rows)
    assert KBEncoder(model, source).precision == "fp32"
    model.train()
    found = encoded(KBEncoder(model, source, precision=precision), source)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert_close(found, expected, **tolerance)
    assert model.training


# -- how much is computed ---------------------------------------------------------------------------------------------


def tower_rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Rows that go through each tower from now on."""
    counted = {"text": 0, "image": 0}

    def spy(name: Literal["text", "image"]) -> Callable[..., tuple[Tensor, Tensor]]:
        real = getattr(Towers, name)

        def counting(self: Towers, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            counted[name] += len(tensors[0])
            outputs: tuple[Tensor, Tensor] = real(self, *tensors)
            return outputs

        return counting

    for name in ("text", "image"):
        monkeypatch.setattr(Towers, name, spy(name))
    return counted


@pytest.mark.usefixtures("batch")
@pytest.mark.parametrize(
    ("form", "expected"),
    [("m3el", (8, 4)), ("mimic", (8, 4)), ("text", (8, 0)), ("image", (0, 4)), ("without-image", (8, 4))],
)
def test_each_distinct_input_once(
    folder: Path, form: str, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = prepare(folder, form)
    counted = tower_rows(monkeypatch)
    encoded(KBEncoder(model, source), source)
    assert (counted["text"], counted["image"]) == expected


@pytest.mark.usefixtures("batch")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_identical_entities_are_bitwise_equal(folder: Path, precision: Literal["fp32", "bf16"]) -> None:
    model, source = prepare(folder)
    rows = Sorted(source).rows.tolist()
    for name, tensor in encoded(KBEncoder(model, source, precision=precision), source).items():
        for one, other in ((8, 9), (3, 7), (0, 7)):
            assert torch.equal(tensor[rows.index(one)], tensor[rows.index(other)]), name
        assert torch.equal(tensor[rows.index(0)], tensor[rows.index(10)]) == name.startswith("text."), name


def test_the_model_stays_as_it_is(folder: Path) -> None:
    model, source = prepare(folder)
    expected = whole(model, source, torch.arange(12))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    encoded(KBEncoder(model, source, precision="bf16"), source)
    assert all(module.training for module in model.modules())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert_close(whole(model.eval(), source, torch.arange(12)), expected, rtol=0, atol=0)


# -- order, start and extremes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(13))
def test_it_resumes_anywhere(folder: Path, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encode._BATCH, "cpu", 3)
    model, source = prepare(folder)
    encoder, order = KBEncoder(model, source, precision="fp32"), Sorted(source)
    images = list(encoder.images(order.keys))
    context = joined([(piece, values) for piece, _, values in images], 0, 4)

    def some(places: Tensor) -> Vectors:
        return {name: tensor[places] for name, tensor in context.items()}

    everything = joined(list(encoder.items(order.rows, order.image_of, some)), 0, 12)
    rest = list(encoder.items(order.rows, order.image_of, some, start))
    if start == 12:
        assert rest == []
        assert list(encoder.images(order.keys, 4)) == []
        return
    assert_close(joined(rest, start, 12), {name: tensor[start:] for name, tensor in everything.items()}, **FP32)
    first = min(start, 3)
    found = joined([(piece, values) for piece, values, _ in encoder.images(order.keys, first)], first, 4)
    visual = joined([(piece, values) for piece, values, _ in images], 0, 4)
    assert_close(found, {name: tensor[first:] for name, tensor in visual.items()}, **FP32)


def test_any_order_gives_the_same(folder: Path) -> None:
    model, source = prepare(folder)
    encoder = KBEncoder(model, source, precision="fp32")
    keys = torch.tensor([2, -1, 0])
    image_of = torch.tensor([1, 0, 2, 0, 1])
    rows = torch.tensor([11, 2, 0, 2, 10])
    images = list(encoder.images(keys))
    context = joined([(piece, values) for piece, _, values in images], 0, 3)
    pieces = encoder.items(rows, image_of, lambda places: {k: v[places] for k, v in context.items()})
    inputs = source.inputs(rows)
    expected = whole(model, source, rows)
    found = joined(list(pieces), 0, 5)
    assert inputs.image_index.tolist() == [-1, 1, 0, 1, -1]
    assert_close(found, {name: value for name, value in expected.items() if name in found}, **FP32)


def test_one_entity_without_image(folder: Path) -> None:
    model, _ = prepare(folder)
    some = load_dataset(model.config.data, folder, model.encoder, ["test"], progress=False).entities
    assert isinstance(some, TokenizedSide)
    source = TokenizedSide(["one"], [()], model.encoder.tokenize, some.cache)
    found = encoded(KBEncoder(model, source, precision="fp32"), source)
    assert {len(tensor) for tensor in found.values()} == {1}
    assert_close(found, whole(model, source, torch.tensor([0])), **FP32)


def test_no_entity(folder: Path) -> None:
    model, source = prepare(folder)
    encoder, none = KBEncoder(model, source), torch.zeros(0, dtype=torch.int64)
    assert list(encoder.images(none)) == []
    assert list(encoder.items(none, none, lambda places: {})) == []


def test_an_error_of_the_source_is_the_callers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read in a thread, one batch after another."""
    monkeypatch.setitem(encode._BATCH, "cpu", 2)
    model, source = prepare(folder)

    def fail(keys: Tensor) -> None:
        raise OSError(f"cannot read {keys.tolist()}")

    monkeypatch.setattr(source, "images", fail)
    with pytest.raises(OSError, match=r"cannot read \[-1, 0\]"):
        next(KBEncoder(model, source).images(source.image_key.unique()))
