"""Stored tower outputs are the encoder's, survive a kill, and are replaced when they no longer fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from m3el_fast import frozen
from m3el_fast.config import RunConfig
from m3el_fast.data.tokenized import TokenizedSide
from m3el_fast.dataset import Dataset, load_dataset
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError
from m3el_fast.features import TowerOutputs
from m3el_fast.frozen import TowerStore, freeze
from m3el_fast.models import MELModel
from tiny import tiny_config, tiny_model, write_tiny

ARRAYS = ("text_global", "text_local", "image_global", "image_local")
# fp16 keeps 11 bits: half a unit in the last place is 2^-11 = 4.9e-4 of the value, and 3e-8 below 6e-5 (subnormals);
# 2e-6 more because fp32 matrix products of other batch sizes round otherwise.
FP16 = {"rtol": 2.0**-11 + 1e-5, "atol": 2e-6}


class Made(NamedTuple):
    config: RunConfig
    model: MELModel
    data: Dataset

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder

    @property
    def side(self) -> TokenizedSide:
        assert isinstance(self.data.entities, TokenizedSide)
        return self.data.entities


@pytest.fixture(autouse=True)
def small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3EL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(frozen, "_BLOCK", 2)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Entities have up to two images: the colour's and, for the first two, another one."""
    folder = write_tiny(tmp_path / "data", mentions=6)
    entities = json.loads((folder / "kb_entity.json").read_text())
    for entity, more in zip(entities, ("white.jpg", "blue.jpg"), strict=False):
        entity["image_list"].append(more)
    (folder / "kb_entity.json").write_text(json.dumps(entities))
    config = tiny_config(folder)
    model = tiny_model(config)
    return Made(config, model, load_dataset(config.data, folder, model.encoder, ["train", "test"], progress=False))


def make_store(made: Made, folder: Path, fingerprint: str = "encoder") -> TowerStore:
    return TowerStore(made.encoder, made.side, folder, fingerprint, progress=False)


def per_item(outputs: TowerOutputs) -> dict[str, Tensor]:
    images = {name: getattr(outputs, name)[outputs.image_index] for name in ("image_global", "image_local")}
    return {"text_global": outputs.text_global, "text_local": outputs.text_local, **images}


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The list to which every call of a tower adds its name and rows."""
    called: list[str] = []
    for name in ("_text", "_image"):
        real = getattr(TowerStore, name)

        def spy(self: TowerStore, encoder: Encoder, rows: Tensor, real=real, name=name) -> list[Tensor]:  # type: ignore[no-untyped-def]
            called.append(f"{name}{rows.tolist()}")
            result: list[Tensor] = real(self, encoder, rows)
            return result

        monkeypatch.setattr(TowerStore, name, spy)
    return called


# -- what it gives ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("drawn", [False, True], ids=["evaluation", "training"])
def test_it_gives_the_towers_outputs(drawn: bool, made: Made, tmp_path: Path) -> None:
    store = make_store(made, tmp_path / "store")
    rows = torch.tensor([11, 0, 5, 1, 0, 9, 10])
    share = torch.tensor([0.5, 0.1, 0.2, 0.9, 0.9, 0.0, 0.3]) if drawn else None
    found = store.inputs(rows, share)
    inputs = made.side.inputs(rows, share)
    expected = made.encoder.eval().towers(inputs)
    assert torch.equal(found.attention_mask, expected.attention_mask)
    for name, value in per_item(found).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, per_item(expected)[name], **FP16, msg=lambda m, n=name: f"{n}: {m}")
    # each distinct image of the batch once, as in the raw inputs (which count no image apart)
    assert len(found.image_global) == len(inputs.pixels) + int((inputs.image_index < 0).any())
    assert torch.equal(store.text_key, made.side.text_key)
    assert torch.equal(store.image_key, made.side.image_key)
    assert len(store) == len(made.side)
    for name in ARRAYS:
        stored = np.load(tmp_path / "store" / f"{name}.npy", mmap_mode="r")
        assert (stored.dtype, len(stored)) == (np.float16, 12 if "text" in name else 5)


@torch.inference_mode()
def test_images_are_found_among_others_of_the_cache(made: Made, tmp_path: Path) -> None:
    """Two of the cache's four images, not the first, and no item without."""
    folder = made.data.kb.root / "kb_image"
    names = {made.side.cache.row(path): path for path in folder.iterdir()}
    second, last = names[1], names[3]
    images = [(last,), (second,), (last, second)]
    side = TokenizedSide(["a", "b", "c"], images, made.encoder.tokenize, made.side.cache)
    store = TowerStore(made.encoder, side, tmp_path / "store", "encoder", progress=False)
    found = per_item(store.inputs(torch.arange(3)))
    expected = per_item(made.encoder.eval().towers(side.inputs(torch.arange(3))))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **FP16)


def test_a_whole_data_set_is_replaced(made: Made, tmp_path: Path) -> None:
    data = freeze(made.model, made.data, tmp_path / "features", progress=False)
    assert {path.name for path in (tmp_path / "features").iterdir()} == {"kb", "train", "test"}
    assert isinstance(data.entities, TowerStore)
    for name, split in data.splits.items():
        assert isinstance(split.source, TowerStore)
        assert torch.equal(split.gold, made.data.splits[name].gold)
    frozen_weights = {name for name, p in made.model.named_parameters() if not p.requires_grad}
    assert frozen_weights == {n for n, _ in made.model.named_parameters() if n.startswith("encoder.model.")}
    batch = data.entities.inputs(torch.arange(4)), data.splits["train"].source.inputs(torch.arange(4))
    made.model(*batch, torch.arange(4))["total"].backward()
    assert made.encoder.image_global_proj.weight.grad is not None
    assert all(p.grad is None for p in made.encoder.model.parameters())


# -- building ---------------------------------------------------------------------------------------------------------


def test_a_finished_store_is_opened_without_the_towers(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_store(made, tmp_path / "store").inputs(torch.arange(12))
    called = calls(monkeypatch)
    second = make_store(made, tmp_path / "store").inputs(torch.arange(12))
    assert called == []
    assert all(torch.equal(value, per_item(second)[name]) for name, value in per_item(first).items())


TEXTS = [f"_text[{i}, {i + 1}]" for i in range(0, 12, 2)]
IMAGES = ["_image[0, 1]", "_image[2, 3]", "_image[4]"]


@pytest.mark.parametrize("done", range(9))
def test_a_killed_build_goes_on(done: int, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after ``done`` blocks: those are kept, the one under way is computed again."""
    whole = make_store(made, tmp_path / "whole").inputs(torch.arange(12))
    write, count = TowerStore._write_state, iter(range(100))

    def killed(self: TowerStore, state: dict[str, int]) -> None:
        if next(count) == done + 1:  # the first call makes the empty store
            raise KeyboardInterrupt
        write(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(TowerStore, "_write_state", killed)
        with pytest.raises(KeyboardInterrupt):
            make_store(made, tmp_path / "parts")
    called = calls(monkeypatch)
    parts = make_store(made, tmp_path / "parts").inputs(torch.arange(12))
    assert called == [*TEXTS, *IMAGES][done:]
    assert all(torch.equal(value, per_item(parts)[name]) for name, value in per_item(whole).items())


def test_other_weights_replace_the_store(made: Made, tmp_path: Path) -> None:
    old = freeze(made.model, made.data, tmp_path / "f", progress=False).entities.inputs(torch.arange(12))
    with torch.no_grad():
        made.encoder.model.visual_projection.weight.mul_(-1)  # type: ignore[union-attr, operator]
    new = freeze(made.model, made.data, tmp_path / "f", progress=False).entities.inputs(torch.arange(12))
    assert torch.equal(per_item(old)["image_global"], -per_item(new)["image_global"])  # type: ignore[arg-type]


def test_other_data_replaces_the_store(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(made, tmp_path / "store")
    texts = [f"another text {i}" for i in range(12)]
    side = TokenizedSide(texts, [()] * 12, made.encoder.tokenize, made.side.cache)
    called = calls(monkeypatch)
    store = TowerStore(made.encoder, side, tmp_path / "store", "encoder", progress=False)
    assert [name for name in called if name in TEXTS] == TEXTS
    with torch.inference_mode():
        expected = made.encoder.model.text(*made.encoder.tokenize(texts))[0]
    torch.testing.assert_close(store.inputs(torch.arange(12)).text_global, expected, **FP16)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_too_little_disk(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # fp16, 12 texts of 16 + 12 x 16 numbers, 5 images (none, and four colours) of 16 + 5 x 16
    needed = 2 * (12 * (16 + 12 * 16) + 5 * (16 + 5 * 16))
    usage = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError) as refusal:
        make_store(made, tmp_path / "store")
    assert str(refusal.value) == f"{tmp_path / 'store'}: expected 0.00 GB free for tower outputs, got 0.00 GB"
    assert list((tmp_path / "store").iterdir()) == []
    usage.free = needed
    assert len(make_store(made, tmp_path / "store")) == 12


@pytest.mark.parametrize("factor", [1e7, float("nan")])
def test_outputs_that_fp16_cannot_hold(factor: float, made: Made, tmp_path: Path) -> None:
    with torch.no_grad():
        made.encoder.model.text_model.final_layer_norm.weight.mul_(factor)
    with pytest.raises(InputError, match=r"store, text_\w+: expected finite values below 65,504, got (\S*e\+\d+|nan)$"):
        make_store(made, tmp_path / "store")
