"""Checkpoints: what is saved is what is loaded, whole or not at all, and what cannot be loaded is refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

import encoder_folders as made
from m3el_fast import checkpoint, hub_transfer, models
from m3el_fast.config import RunConfig
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError
from m3el_fast.models import M3EL, MIMIC, MELModel, build_model, load_model
from tiny import tiny_config, tiny_inputs, tiny_model

FORMS: dict[str, dict[str, Any]] = {
    "m3el": {},
    "released-t2v": {"union": "released", "cross_form": "t2v", "icl_variant": "released"},
    "mclet": {"contrastive": "mclet", "intra_modal": "independent"},
    "ablated": {"image": False, "cross": False, "contrastive": "none"},
    "mimic": {"type": "mimic"},
}


def small(form: str = "m3el") -> MELModel:
    return tiny_model(tiny_config(Path("unused"), FORMS[form])).eval()


@torch.no_grad()
def outputs(model: MELModel) -> list[Tensor]:
    """Features and scores of a few items."""
    entities, mentions = (model.features(tiny_inputs(model.encoder, n, n)) for n in (4, 3))
    found = [value for part in (entities, mentions, model.matcher(entities, mentions)) for value in vars(part).values()]
    return [value for value in found if value is not None]


def assert_same(one: MELModel, other: MELModel) -> None:
    """Equal classes, configurations, weights and outputs, to the bit."""
    assert type(one) is type(other)
    assert one.config == other.config
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())
    assert all(torch.equal(a, b) for a, b in zip(outputs(one), outputs(other), strict=True))


# -- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_round_trip_is_exact(form: str, tmp_path: Path) -> None:
    model = small(form)
    assert model.save_pretrained(tmp_path / "a") is None
    loaded = type(model).from_pretrained(tmp_path / "a")
    assert not loaded.training
    assert_same(model, loaded)
    assert_same(model, load_model(str(tmp_path / "a")))
    loaded.save_pretrained(tmp_path / "b")
    for file in (models.CONFIG_FILE, models.WEIGHTS_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_what_the_folder_holds(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path / "a")
    files = {"config.yaml", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == files | {"README.md", "towers.json"}
    assert RunConfig.load(tmp_path / "a" / "config.yaml") == model.config
    assert load_file(tmp_path / "a" / "model.safetensors").keys() == model.state_dict().keys()
    words = AutoTokenizer.from_pretrained(str(tmp_path / "a"))
    text = "Elm [SEP] a red mill"
    assert words(text)["input_ids"] == model.encoder.tokenizer(text)["input_ids"]
    processor = json.loads((tmp_path / "a" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 16, "width": 16}
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


MAKERS: dict[str, tuple[made.Maker, ...]] = {name: (maker,) for name, maker in made.WHOLE.items()} | made.PAIRS


@pytest.mark.parametrize("makers", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("form", ["m3el", "mimic"])
def test_a_round_trip_with_pretrained_towers(makers: tuple[made.Maker, ...], form: str, tmp_path: Path) -> None:
    """Weights that two modules share would be refused by safetensors; the sources are gone when it is loaded."""
    names = ("pretrained",) if len(makers) == 1 else ("text", "vision")
    sources = {name: str(maker(tmp_path / name)) for name, maker in zip(names, makers, strict=True)}
    settings = {"model": {"type": form, "d": 8}, "encoder": {**sources, "max_text_tokens": made.LT, "dv": 8, "dt": 10}}
    config = RunConfig.parse(settings, "test")
    model = build_model(config, Encoder.create(config.encoder)).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    for name in names:
        (tmp_path / name).rename(tmp_path / f"{name}-gone")
    assert_same(model, load_model(tmp_path / "checkpoint"))


def test_saving_replaces_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    small("mimic").save_pretrained(target)
    (target / "notes.txt").write_text("of the old checkpoint")
    model = small()
    model.save_pretrained(target)
    assert not (target / "notes.txt").exists()
    assert_same(model, load_model(target))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_the_folder_that_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "sub").mkdir()
    for place, target in (("a", "."), ("a/sub", ".."), ("a", str(tmp_path / "a"))):
        monkeypatch.chdir(tmp_path / place)
        with pytest.raises(InputError, match=r": expected a folder to replace, got the one that this process works in"):
            small("mimic").save_pretrained(target)
    assert isinstance(load_model(tmp_path / "a"), M3EL)


def fails(*args: object, **kwargs: object) -> None:
    raise OSError("no space left on device")


def no_second_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where folders cannot be exchanged: the old one is out of the way, the new one does not come."""
    real, calls = os.replace, iter(range(100))

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == "checkpoint" and next(calls) == 0:
            fails()
        real(source, target)

    monkeypatch.setattr("m3el_fast.files._exchange", lambda one, other: False)
    monkeypatch.setattr("m3el_fast.files.os.replace", replace)


FAILURES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "weights": lambda patch: patch.setattr(checkpoint, "save_file", fails),
    "tokenizer": lambda patch: patch.setattr(Encoder, "save_architecture", fails),
    "rename": no_second_replace,
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_save_that_fails_leaves_what_was_there(
    failure: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "checkpoint"
    small("mimic").save_pretrained(target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with monkeypatch.context() as patch:
        failure(patch)
        with pytest.raises(OSError, match="no space left"):
            small().save_pretrained(target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_of_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"expected a new folder or a checkpoint to replace, got a folder of other"):
        small().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    small().save_pretrained(tmp_path / "empty")
    assert (tmp_path / "empty" / "config.yaml").exists()


# -- the Hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_name_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    model.save_pretrained(tmp_path / "cached")
    asked: list[tuple[str, dict[str, object]]] = []

    def download(name: str, **kwargs: object) -> str:
        asked.append((name, kwargs))
        return str(tmp_path / "cached")

    monkeypatch.setattr(hub_transfer, "snapshot_download", download)
    assert_same(model, M3EL.from_pretrained("someone/model", revision="v2"))
    assert_same(model, load_model("someone/model"))
    no_index = {"ignore_patterns": ["index/*"]}
    assert asked == [("someone/model", {"revision": "v2"} | no_index), ("someone/model", no_index)]


OFFLINE = [
    LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder.\nTo enable, set HF_HUB_OFFLINE=0"),
    OfflineModeIsEnabled("Cannot reach the Hub: offline mode is enabled."),
    ConnectionError(),
]


@pytest.mark.parametrize("error", OFFLINE, ids=lambda error: type(error).__name__)
def test_a_hub_name_while_offline(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(hub_transfer, "snapshot_download", download)
    said = next(iter(str(error).splitlines()), type(error).__name__)
    for load in (load_model, M3EL.from_pretrained):
        with pytest.raises(InputError) as refusal:
            load("someone/model")
        assert str(refusal.value) == (
            f"someone/model: expected a checkpoint folder or a Hub name, got no such folder, and the Hub says: {said}"
        )


def test_a_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **kwargs: object) -> str:
        raise LocalEntryNotFoundError("Got: ConnectError") from hub_transfer.ConnectionFailure("no route")

    monkeypatch.setattr(hub_transfer, "snapshot_download", download)
    with pytest.raises(InputError, match=r"none in the cache, and no connection to https://huggingface\.co: no route$"):
        load_model("someone/model")


def test_huggingface_hubs_own_offline_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"someone/model: expected .*, got no such folder, and the Hub says: Cannot"):
        M3EL.from_pretrained("someone/model", cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["nothing", "./a/b/c", "/nothing/at/all"])
def test_a_name_that_can_be_neither_folder_nor_hub_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_transfer, "snapshot_download", fails)
    with pytest.raises(InputError) as refusal:
        load_model(name)
    expected = "a checkpoint folder or a Hub name like owner/model"
    assert str(refusal.value) == f"{name}: expected {expected}, got no such folder"


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def refused(folder: Path, expected: str, load: Callable[[Path], MELModel] = load_model) -> None:
    with pytest.raises(InputError) as refusal:
        load(folder)
    assert str(refusal.value) == expected.format(folder=folder)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_a_folder_without_one_of_the_two_files(saved: Path, name: str) -> None:
    (saved / name).unlink()
    expected = "{folder}: expected a checkpoint folder with config.yaml and model.safetensors, "
    for load in (load_model, M3EL.from_pretrained, MIMIC.from_pretrained):
        refused(saved, expected + f"got no {name} in it", load)


def test_a_file_instead_of_a_folder(saved: Path) -> None:
    expected = "{folder}: expected a checkpoint folder or a Hub name like owner/model, got a file"
    refused(saved / "model.safetensors", expected)


Weights = dict[str, Tensor]
KEY = "matcher.text.key.bias"
DEFECTS: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "missing": (lambda w: w.pop(KEY), f": expected the weights of this model, got 1 missing: {KEY}"),
    "unknown": (
        lambda w: w.update({"matcher.more": torch.ones(1)}),
        ": expected the weights of this model, got 1 unknown: matcher.more",
    ),
    "many-missing": (
        lambda w: [w.pop(name) for name in sorted(w) if name.startswith("matcher.image_")],
        ": expected the weights of this model, got 4 missing: matcher.image_global_norm.bias, "
        "matcher.image_global_norm.weight, matcher.image_local_norm.bias, matcher.image_local_norm.weight",
    ),
    "shape": (lambda w: w.update({KEY: torch.ones(5)}), f", {KEY}: expected shape (8,), got (5,)"),
    "scalar": (lambda w: w.update({KEY: torch.tensor(1.0)}), f", {KEY}: expected shape (8,), got ()"),
}


@pytest.mark.parametrize(("damage", "message"), DEFECTS.values(), ids=DEFECTS)
def test_weights_that_do_not_fit(saved: Path, damage: Callable[[Weights], Any], message: str) -> None:
    weights = load_file(saved / "model.safetensors")
    damage(weights)
    save_file(weights, saved / "model.safetensors")
    refused(saved, "{folder}/model.safetensors" + message)


def test_more_than_five_names_are_cut(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    rest = {name: value for name, value in weights.items() if not name.startswith("encoder.")}
    save_file(rest, saved / "model.safetensors")
    with pytest.raises(InputError, match=rf"got {len(weights) - len(rest)} missing: (encoder\.\S+, ){{5}}\.\.\.$"):
        load_model(saved)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights(saved: Path, size: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"model\.safetensors: expected a safetensors file, got "):
        load_model(saved)


def test_a_checkpoint_of_the_other_model(tmp_path: Path) -> None:
    for form, other in (("m3el", MIMIC), ("mimic", M3EL)):
        small(form).save_pretrained(tmp_path / form)
        expected = f"{{folder}}/config.yaml, key model.type: expected a checkpoint of {other.__name__}, got {form}"
        refused(tmp_path / form, expected, other.from_pretrained)
        assert not isinstance(load_model(tmp_path / form), other)


def test_a_configuration_of_the_other_model(saved: Path) -> None:
    """The file says MIMIC, the weights are M3EL's."""
    config = yaml.safe_load((saved / "config.yaml").read_text())
    (saved / "config.yaml").write_text(yaml.safe_dump(config | {"model": {"type": "mimic", "d": 8}}))
    with pytest.raises(InputError, match=r"model\.safetensors: expected the weights of this model, got \d+ missing: "):
        load_model(saved)


def test_a_configuration_that_is_none(saved: Path) -> None:
    content = (saved / "config.yaml").read_text()
    (saved / "config.yaml").write_text(content.replace("tau:", "taux:"))
    refused(saved, "{folder}/config.yaml, key model.taux: expected a known key, got an unknown one")
    (saved / "config.yaml").write_text("model: [")
    with pytest.raises(InputError, match=r"config\.yaml: expected valid YAML, got "):
        load_model(saved)


@pytest.mark.parametrize(("cls", "form"), [(M3EL, "mimic"), (MIMIC, "m3el")])
def test_a_model_of_another_configuration_is_not_built(cls: type[MELModel], form: str) -> None:
    model = small(form)
    with pytest.raises(InputError, match=rf"model: expected a configuration of {cls.__name__}, got {form}"):
        cls(model.config, model.encoder)
