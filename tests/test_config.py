"""Configuration: the presets are the papers', and whatever cannot be used is named with file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from m3el_fast.config import M3ELConfig, MIMICConfig, RunConfig, TrainConfig, preset_names, read_yaml, resolve_preset
from m3el_fast.errors import InputError
from tiny import tiny_config

PAPERS = ("wikimel", "richpediamel", "wikidiverse")


# -- presets ----------------------------------------------------------------------------------------------------------


def test_the_presets() -> None:
    assert set(preset_names()) >= {*PAPERS, "sample", "scratch"}
    for name in preset_names():
        config = RunConfig.load(name)
        assert RunConfig.parse(yaml.safe_load(config.dump()), name) == config


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_preset(name: str) -> None:
    """Spec section 8."""
    config = RunConfig.load(name)
    assert config.model == M3ELConfig(d=96, tau=0.03, beta=0.8, gamma=1.0, heads=5)
    assert config.model == M3ELConfig.paper()
    assert config.encoder.pretrained == "openai/clip-vit-base-patch32"
    assert (config.encoder.max_text_tokens, config.encoder.dt, config.encoder.dv) == (40, None, 96)
    train = config.train
    assert (train.beta1, train.beta2, train.eps, train.weight_decay, train.lr) == (0.9, 0.999, 1e-4, 1e-4, 1e-5)
    assert (train.batch_size, train.epochs, train.eval_every, train.patience, train.seed) == (96, 20, 2, 3, 43)
    assert (train.schedule, train.warmup, train.clip_norm, train.accumulation) == ("constant", 0.0, None, 1)
    assert (config.data.dir, config.data.strict) == (None, False)


@pytest.mark.parametrize("name", ["sample", "scratch"])
def test_a_preset_without_pretrained_weights_asks_no_hub(name: str) -> None:
    config = RunConfig.load(name)
    assert config.encoder.scratch is not None
    assert config.encoder.pretrained is None


def test_the_forms_of_m3el() -> None:
    paper = M3ELConfig.paper()
    assert (paper.icl_variant, paper.union, paper.cross_form, paper.directions) == (
        "paper",
        "paper",
        "bidirectional",
        "both",
    )
    assert (paper.pooling, paper.intra_modal, paper.lam, paper.mask_duplicates) == ("mean", "unified", 1.0, False)
    for bidirectional, form in ((True, "bidirectional"), (False, "t2v")):
        released = M3ELConfig.released(bidirectional)
        assert (released.icl_variant, released.union, released.cross_form) == ("released", "released", form)


def test_a_file_of_a_presets_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_preset("wikimel").name == "wikimel.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wikimel").write_text(tiny_config(tmp_path).dump())
    assert resolve_preset("wikimel") == Path("wikimel")
    assert RunConfig.load("wikimel") == tiny_config(tmp_path)


# -- round trip -------------------------------------------------------------------------------------------------------


def test_dump_and_parse() -> None:
    switches: list[dict[str, Any]] = [
        {"pooling": "soft", "tau": 1e-7, "beta": 0.0, "lam": -0.5, "heads": 8, "cross_form": "t2v"},
        {"type": "mimic", "token_mask": True},
    ]
    for model in switches:
        config = tiny_config(Path("/a b/ü: {x}"), model, lr=3.3e-5, clip_norm=0.25)
        text = config.dump()
        assert RunConfig.parse(yaml.safe_load(text), "dump") == config
        assert yaml.safe_load(text)["data"]["dir"] == "/a b/ü: {x}"


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("encoder: {scratch: {}}")
    config = RunConfig.load(tmp_path / "c.yaml")
    assert config.model == M3ELConfig()
    assert config.train == TrainConfig()
    (tmp_path / "c.yaml").write_text("encoder: {text: a/b, vision: c/d}\nmodel: {type: mimic}\ntrain: {lr: 1e-4}")
    config = RunConfig.load(tmp_path / "c.yaml")
    assert config.model == MIMICConfig()
    assert config.train.lr == 1e-4  # YAML 1.1 reads 1e-4 as text


def test_it_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig.load("sample").train.epochs = 3  # type: ignore[misc]


# -- refusals ---------------------------------------------------------------------------------------------------------

GOOD = {"encoder": {"scratch": {}}}
M3EL = {"type": "m3el"}
BAD: dict[str, tuple[Any, str]] = {
    "unknown-section": (GOOD | {"trian": {}}, "key trian: expected a known key, got an unknown one"),
    "unknown-key": (GOOD | {"train": {"rate": 1}}, "key train.rate: expected a known key, got an unknown one"),
    "unknown-model-key": (
        GOOD | {"model": M3EL | {"taux": 1}},
        "key model.taux: expected a known key, got an unknown one",
    ),
    "key-of-the-other-model": (
        GOOD | {"model": {"type": "mimic", "tau": 0.1}},
        "key model.tau: expected a known key, got an unknown one",
    ),
    "unknown-scratch-key": (
        {"encoder": {"scratch": {"width": 3}}},
        "key encoder.scratch.width: expected a known key, got an unknown one",
    ),
    "key-that-is-no-text": (GOOD | {3: 4}, "key 3: expected a known key, got an unknown one"),
    "no-encoder": ({"model": M3EL}, "key encoder: expected a value, got nothing"),
    "no-model-type": (GOOD | {"model": {"d": 8}}, "key model.type: expected m3el or mimic, got nothing"),
    "unknown-model": (GOOD | {"model": {"type": "blink"}}, "key model.type: expected m3el or mimic, got blink"),
    "section-that-is-a-value": (GOOD | {"train": 3}, "key train: expected a mapping, got 3"),
    "model-that-is-a-value": (GOOD | {"model": "m3el"}, "key model: expected a mapping, got 'm3el'"),
    "section-that-is-empty": (GOOD | {"data": None}, "key data: expected a mapping, got None"),
    "text-for-a-number": (GOOD | {"train": {"lr": "fast"}}, "key train.lr: expected a valid number, got 'fast'"),
    "fraction-for-a-count": (
        GOOD | {"train": {"epochs": 2.5}},
        "key train.epochs: expected a valid integer, got 2.5",
    ),
    "number-for-a-text": (GOOD | {"data": {"dir": 7}}, "key data.dir: expected a valid string, got 7"),
    "text-for-a-switch": (
        GOOD | {"data": {"strict": "maybe"}},
        "key data.strict: expected a valid boolean, got 'maybe'",
    ),
    "unknown-choice": (
        GOOD | {"model": M3EL | {"contrastive": "triplet"}},
        "key model.contrastive: expected 'icl', 'infonce', 'mclet' or 'none', got 'triplet'",
    ),
    "zero": (GOOD | {"train": {"batch_size": 0}}, "key train.batch_size: expected greater than 0, got 0"),
    "too-many-heads": (
        GOOD | {"model": M3EL | {"heads": 9}},
        "key model.heads: expected less than or equal to 8, got 9",
    ),
    "nan": (
        GOOD | {"model": M3EL | {"gamma": float("nan")}},
        "key model.gamma: expected a finite number, got nan",
    ),
    "infinity": (GOOD | {"train": {"lr": float("inf")}}, "key train.lr: expected a finite number, got inf"),
    "two-encoders": (
        {"encoder": {"scratch": {}, "pretrained": "x"}},
        "key encoder: expected exactly one of: pretrained; text and vision; scratch, "
        "got {'scratch': {}, 'pretrained': 'x'}",
    ),
    "half-a-pair": (
        {"encoder": {"text": "x"}},
        "key encoder: expected text and vision together: both tower names, or neither, got {'text': 'x'}",
    ),
    "no-towers": (
        {"encoder": {}},
        "key encoder: expected exactly one of: pretrained; text and vision; scratch, got {}",
    ),
    "all-modules-off": (
        GOOD | {"model": M3EL | dict.fromkeys(("text", "image", "cross"), False)},
        "key model: expected at least one of the modules text, image, cross to be on, "
        "got {'type': 'm3el', 'text': False, 'image': False, 'cross': False}",
    ),
    "no-such-direction": (
        GOOD | {"model": M3EL | {"cross_form": "t2v", "directions": "v2t"}},
        "key model: expected directions t2v or both with cross_form t2v, which has no other, "
        "got {'type': 'm3el', 'cross_form': 't2v', 'directions': 'v2t'}",
    ),
    "nothing-to-train": (
        GOOD
        | {
            "model": M3EL
            | {"text": False, "image": False, "union_loss": False, "cross_loss": False, "contrastive": "none"}
        },
        "key model: expected at least one loss to be on, got {'type': 'm3el', 'text': False, 'image': False, "
        "'union_loss': False, 'cross_loss': False, 'contrastive': 'none'}",
    ),
    "a-list": ([1, 2], "key (top): expected a mapping, got [1, 2]"),
    "a-text": ("sample", "key (top): expected a mapping, got 'sample'"),
    "nothing": (None, "key (top): expected a mapping, got None"),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_used(values: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(InputError) as refusal:
        RunConfig.load(path)
    assert str(refusal.value) == f"{path}, {message}"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        pytest.param(b"model: [1, 2", "line 1, column 13", id="unclosed"),
        pytest.param(b"a: b: c", "mapping values are not allowed here", id="colons"),
        pytest.param(b"a: \xff", "invalid start byte", id="not-utf-8"),
        pytest.param(b"!!python/object/apply:os.getcwd []", "could not determine a constructor", id="python-object"),
    ],
)
def test_a_file_that_is_no_yaml(content: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        RunConfig.load(path)
    assert str(refusal.value).startswith(f"{path}: expected valid YAML, got ")
    assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_no_such_file(tmp_path: Path) -> None:
    expected = "a YAML file or one of the presets " + ", ".join(preset_names())
    for path in (tmp_path / "none.yaml", tmp_path, Path("no-such-preset")):
        with pytest.raises(InputError) as refusal:
            read_yaml(path)
        assert str(refusal.value) == f"{path}: expected {expected}, got no such file"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, encoding: str) -> str:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "run.yaml").write_text("encoder: {scratch: {}}")
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(InputError, match=r"run\.yaml: expected a readable file, got Permission denied"):
        RunConfig.load(tmp_path / "run.yaml")
