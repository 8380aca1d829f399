"""The model card and the metrics of a checkpoint: true, readable by the Hub, kept where a user changed them."""

from __future__ import annotations

import ast
import csv
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from setuptools.config.pyprojecttoml import read_configuration

import encoder_folders as made
from m3el_fast.config import RunConfig
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError
from m3el_fast.hub_card import edited, make_card, published
from m3el_fast.hub_results import Results, data_name
from m3el_fast.metrics import Metrics
from m3el_fast.models import MELModel, load_model
from tiny import tiny_config, tiny_model
from trained import Trained, trained_in

ROOT = Path(__file__).parents[1]
DEV = Metrics({1: 0.5, 3: 0.625, 5: 0.75, 10: 0.875, 20: 1.0}, 0.61803, 4.2, 1664)
TEST = Metrics({1: 0.25, 3: 0.375, 5: 0.5, 10: 0.75, 20: 0.99}, 0.41421, 9.1, 2078)
RESULTS = Results(data="Wiki Diverse", entities=132_460, splits={"dev": DEV, "test": TEST})


def small(form: str = "m3el") -> MELModel:
    return tiny_model(tiny_config(Path("/home/someone/data"), {"type": form})).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield from trained_in(tmp_path_factory.mktemp("trained"))


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_training_leaves_its_metrics_with_the_checkpoint(trained: Trained) -> None:
    results = load_model(trained.checkpoint).results
    assert results is not None
    assert (results.data, results.entities, set(results.splits)) == ("TINY", 12, {"dev", "test"})
    shown = json.loads((trained.run / "results.json").read_text())["full model"]
    assert results.splits["test"] == Metrics({int(k): v for k, v in shown.pop("hits").items()}, **shown)
    rows = list(csv.DictReader((trained.run / "log" / "dev.csv").open()))
    assert results.splits["dev"].mrr == max(float(row["mrr"]) for row in rows)
    assert len(rows) == 2
    text = (Path(trained.checkpoint) / "README.md").read_text()
    assert f"| test | 24 | {shown_hits(results.splits['test'])} | {results.splits['test'].mrr:.4f} |" in text


def shown_hits(metrics: Metrics) -> str:
    return " | ".join(f"{value:.4f}" for value in metrics.hits.values())


def test_metrics_stay_with_the_weights(tmp_path: Path) -> None:
    model = small()
    model.results = RESULTS
    model.save_pretrained(tmp_path / "a")
    loaded = load_model(tmp_path / "a")
    assert loaded.results == RESULTS
    loaded.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a" / "metrics.json").read_bytes() == (tmp_path / "b" / "metrics.json").read_bytes()
    loaded.results = None
    loaded.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b" / "metrics.json").exists()
    assert load_model(tmp_path / "b").results is None


DAMAGES = {
    "empty": ("", "metrics.json: expected metrics as m3el_fast writes them, got "),
    "list": ("[]", "metrics.json: expected metrics as m3el_fast writes them, got "),
    "split": (
        '{"data": "x", "entities": 3, "splits": {"train": {}}}',
        "metrics.json, key splits.train.[key]: expected metrics as m3el_fast writes them, got ",
    ),
    "no-split": (
        '{"data": "x", "entities": 3, "splits": {}}',
        "metrics.json, key splits: expected metrics as m3el_fast writes them, got ",
    ),
    "value": (
        '{"data": "x", "entities": "many", "splits": {}}',
        "metrics.json, key entities: expected metrics as m3el_fast writes them, got ",
    ),
}


@pytest.mark.parametrize(("content", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_metrics_are_named(content: str, message: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "metrics.json").write_text(content)
    with pytest.raises(InputError) as refusal:
        load_model(tmp_path / "a")
    assert str(refusal.value).startswith(f"{tmp_path / 'a'}/{message}")
    assert "\n" not in str(refusal.value)


def test_the_data_set_is_called_as_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    assert data_name(tmp_path / "folder") == "folder"
    (tmp_path / "folder" / "wiki_diverse_test.json").touch()
    assert data_name(tmp_path / "folder") == "wiki_diverse"
    (tmp_path / "folder" / "other_test.json").touch()
    assert data_name(tmp_path / "folder") == "folder"
    monkeypatch.chdir(tmp_path / "folder")
    assert data_name(Path(".")) == "folder"


# -- the card ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "paper"), [("m3el", "https://arxiv.org/abs/2412.10440"), ("mimic", "https://arxiv.org/abs/2307.09721")]
)
def test_the_hub_reads_the_metadata(form: str, paper: str, tmp_path: Path) -> None:
    model = small(form)
    model.results = RESULTS
    model.save_pretrained(tmp_path / "my-model", model_card_kwargs={"license": "cc-by-4.0", "language": ["en"]})
    card = ModelCard.load(tmp_path / "my-model" / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["license"], data["language"]) == ("m3el_fast", "cc-by-4.0", ["en"])
    assert set(data["tags"]) >= {"entity-linking", "multimodal", form}
    (entry,) = data["model-index"]
    assert entry["name"] == "my-model"
    for result in entry["results"]:
        assert result["task"] == {"type": "entity-linking", "name": "Multimodal entity linking"}
        assert re.fullmatch(r"([\w-]+/)?[\w.-]+", result["dataset"]["type"])
        assert result["dataset"]["name"] == "Wiki Diverse"
        metrics = RESULTS.splits[result["dataset"]["split"]]
        found = {metric["type"]: metric["value"] for metric in result["metrics"]}
        assert found == {f"hits@{k}": v for k, v in metrics.hits.items()} | {"mrr": round(metrics.mrr, 4)}
        assert {metric["name"] for metric in result["metrics"]} == {
            "Hits@1",
            "Hits@3",
            "Hits@5",
            "Hits@10",
            "Hits@20",
            "MRR",
        }
    assert {result["dataset"]["split"] for result in entry["results"]} == {"dev", "test"}
    assert paper in card.text
    assert "| split | mentions | Hits@1 | Hits@3 | Hits@5 | Hits@10 | Hits@20 | MRR |" in card.text
    assert "| dev | 1,664 | 0.5000 | 0.6250 | 0.7500 | 0.8750 | 1.0000 | 0.6180 |" in card.text
    assert "| test | 2,078 | 0.2500 | 0.3750 | 0.5000 | 0.7500 | 0.9900 | 0.4142 |" in card.text
    assert "all 132,460 entities" in card.text


NAMES = ['we"ird', "two\nlines", "x\n---\nlicense: mit\n---\n", "back\\slash", "{{ 7 * 7 }}", "it's", "- é: ü"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("entities", [None, 3])
def test_odd_names_stay_names(name: str, entities: int | None) -> None:
    """Of a folder and of a data set: in the metadata, in the text and in the code."""
    results = RESULTS.model_copy(update={"data": name})
    made = make_card(small().config, name=name, results=results, entities=entities, metadata={"datasets": [name]})
    assert edited(str(made).encode()) is None
    card = ModelCard(str(made))
    data = card.data.to_dict()
    assert data.keys() == {"library_name", "tags", "metrics", "model-index", "datasets"}
    assert data["datasets"] == [name]
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert card.text.splitlines()[1] == "# " + " ".join(name.split())
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    call = next(node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert isinstance(call.args[0], ast.Constant) and call.args[0].value == name


def test_metrics_that_are_no_number_or_of_other_ks(tmp_path: Path) -> None:
    """They are kept as they are, and shown."""
    model = small()
    odd = Metrics({1: 0.5, 2: float("nan")}, float("nan"), 1.0, 3)
    model.results = Results(data="d", entities=3, splits={"dev": odd, "test": TEST})
    model.save_pretrained(tmp_path / "a")
    loaded = load_model(tmp_path / "a").results
    assert loaded is not None and repr(loaded) == repr(model.results)
    text = (tmp_path / "a" / "README.md").read_text()
    assert "| split | mentions | Hits@1 | Hits@2 | Hits@3 | Hits@5 | Hits@10 | Hits@20 | MRR |" in text
    assert "| dev | 3 | 0.5000 | nan |  |  |  |  | nan |" in text


def test_a_card_without_metrics_and_license_claims_none(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "a")
    card = ModelCard.load(tmp_path / "a" / "README.md")
    assert not {"model-index", "metrics", "license", "base_model"} & card.data.to_dict().keys()
    assert "No metrics are recorded with this checkpoint" in card.text
    assert "Hits@1" not in card.text


def test_the_configuration_in_the_card_is_the_whole_without_folders(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (tmp_path / "config.yaml").write_text(block)
    assert RunConfig.load(tmp_path / "config.yaml") == published(model.config)
    assert "/home/someone" not in text
    assert load_model(tmp_path / "a").config == model.config  # the checkpoint's own keeps the training data's folder


def test_no_folder_of_this_machine_is_published(tmp_path: Path) -> None:
    towers = {"text": str(tmp_path / "text"), "vision": "google/vit-base-patch16-224"}
    config = RunConfig.parse({"encoder": towers, "data": {"dir": str(tmp_path)}}, "test")
    assert published(config).encoder.text == "text"
    assert published(config).encoder.vision == "google/vit-base-patch16-224"
    assert published(config).data.dir is None
    own = RunConfig.parse({"encoder": {"scratch": {"tokenizer": "/home/someone/clip"}}}, "test")
    assert str(tmp_path) not in published(config).dump()
    assert "/home" not in published(own).dump()


def test_towers_of_the_hub_are_the_base_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (maker,) = list(made.WHOLE.values())[:1]
    monkeypatch.chdir(tmp_path)
    maker(tmp_path / "owner" / "clip")  # stands in for a Hub name while it is read
    config = RunConfig.parse({"encoder": {"pretrained": "owner/clip", "max_text_tokens": made.LT, "dv": 8}}, "test")
    Encoder.create(config.encoder)  # a folder that can be used
    card = make_card(config, name="a", results=None, entities=None, metadata={})
    assert "base_model" not in card.data.to_dict()  # it is a folder
    (tmp_path / "owner").rename(tmp_path / "gone")
    card = make_card(config, name="a", results=None, entities=None, metadata={})
    assert card.data.base_model == "owner/clip"
    assert "| encoder | owner/clip |" in card.text


def test_the_code_in_the_card_runs(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, from the folder that holds the checkpoint; DIR is the data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").symlink_to(trained.data)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.jpg").symlink_to(trained.data / "mention_image" / "red.jpg")
    load_model(trained.checkpoint).save_pretrained("mine")
    (code,) = re.findall(r"```python\n(.*?)```", Path("mine/README.md").read_text(), re.S)
    lines = code.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines[:-1]), names)
    (links,) = eval(lines[-1], names)
    assert len(links) == 3
    assert names["linker"].link([{"mention": "a name", "sentence": ""}], k=1)  # image may be left out


@pytest.mark.parametrize("given", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["checkpoint", "untrained"])
def test_the_example_runs(
    given: bool, trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = ROOT / "docs" / "examples" / "hub_roundtrip.py"
    monkeypatch.syspath_prepend(str(example.parent))
    monkeypatch.setattr("sys.argv", [str(example), *([trained.checkpoint] if given else [])])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert ("| test | 24 |" in printed) == given
    assert f"links to the {'12' if given else '1,503'} entities of the index" in printed
    assert len(re.findall(r"^ +-?\d+\.\d{3}  Q\d+  ", printed, re.M)) == 6


def test_the_template_is_installed() -> None:
    data = read_configuration(ROOT / "pyproject.toml", expand=False)["tool"]["setuptools"]["package-data"]
    assert "hub_card.md" in data["m3el_fast"]
    assert (ROOT / "m3el_fast" / "hub_card.md").exists()


# -- cards that a user changed ----------------------------------------------------------------------------------------


def test_what_counts_as_edited(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_bytes()
    assert edited(None) is None
    assert edited(card) is None
    assert edited(card.replace(b"\n", b"\r\n")) is None  # a checkout on Windows
    assert edited(str(ModelCard.load(tmp_path / "a" / "README.md")).encode()) is None
    for other in (b"", b"# mine\n", b"\xff", card.replace(b"## Limits", b"## Limit"), card + b"More.\n", card[:-60]):
        assert edited(other) == other


def test_an_edited_card_stays(tmp_path: Path) -> None:
    first, second = small(), small()
    with torch.no_grad():
        next(second.matcher.parameters()).add_(1)
    card = tmp_path / "a" / "README.md"
    first.save_pretrained(tmp_path / "a")
    second.results = RESULTS
    second.save_pretrained(tmp_path / "a")
    assert "0.6180" in card.read_text()  # nobody had changed it
    mine = card.read_bytes().replace(b"## Limits", b"## Limits, as we met them")
    card.write_bytes(mine)
    first.save_pretrained(tmp_path / "a")
    assert card.read_bytes() == mine
    loaded = load_model(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")  # and it goes along
    assert (tmp_path / "b" / "README.md").read_bytes() == mine
    newer = mine + b"\nMore.\n"
    card.write_bytes(newer)
    loaded.save_pretrained(tmp_path / "a")  # changed after it was loaded
    assert card.read_bytes() == newer
    card.unlink()
    first.save_pretrained(tmp_path / "a")
    assert edited(card.read_bytes()) is None
