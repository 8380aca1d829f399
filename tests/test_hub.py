"""The Hugging Face Hub, played by this machine: what goes there comes back, an index too, or one line says why not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import encoder_folders as made
from fake_hub import FakeHub, running_hub
from m3el_fast.calibration import Calibration
from m3el_fast.config import RunConfig
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError
from m3el_fast.hub import main as hub_command
from m3el_fast.hub_card import edited, published
from m3el_fast.hub_results import Results
from m3el_fast.index import EntityIndex
from m3el_fast.index.__main__ import read_entities
from m3el_fast.link import Linker
from m3el_fast.link import main as link_command
from m3el_fast.metrics import Metrics
from m3el_fast.models import M3EL, MELModel, build_model, load_model
from tiny import tiny_config, tiny_inputs, tiny_model, write_tiny
from trained import failure

RESULTS = Results(data="TINY", entities=12, splits={"dev": Metrics.of(torch.tensor([1, 2, 30]))})
CALIBRATION = Calibration(
    temperature=0.7, nil_score=3.5, nil_threshold=0.2, data="TINY", entities=12, mentions=26, nil=2
)
MENTIONS = [{"mention": "Elm", "sentence": "We saw the inn number 0"}, {"mention": "Elm", "sentence": "a mill"}]
CHECKPOINT = {
    ".gitattributes",
    "README.md",
    "config.yaml",
    "metrics.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "towers.json",
}


@dataclass(frozen=True)
class Made:
    """A data set, a model and an index of its KB."""

    data: Path
    model: MELModel
    index: Path


def encode(model: MELModel, data: Path, out: Path) -> EntityIndex:
    entities = read_entities(model, data, False, None)
    return EntityIndex.build(model, entities.source, out, ids=entities.ids, names=entities.names, progress=False)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    data = write_tiny(folder / "data")
    model = tiny_model(tiny_config(data)).eval()
    model.results = RESULTS
    encode(model, data, folder / "index")
    return Made(data, model, folder / "index")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with running_hub(tmp_path / "cache") as hub:
        yield hub


def other(model: MELModel) -> MELModel:
    """The same with other weights."""
    changed = tiny_model(model.config, seed=2)
    return changed.eval()


def index_files(index: Path) -> set[str]:
    """What travels of an index, as paths in a checkpoint."""
    names = {file.name for file in EntityIndex.open(index).manifest.files}
    return {f"index/{name}" for name in names | {"manifest.json"}}


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@torch.no_grad()
def scores(model: MELModel) -> torch.Tensor:
    inputs = tiny_inputs(model.encoder, 4, 3)
    union: torch.Tensor = model.matcher(model.features(inputs), model.features(inputs)).union
    return union


# -- there and back ---------------------------------------------------------------------------------------------------


def test_a_model_and_its_index_come_back(ours: Made, hub: FakeHub) -> None:
    address = ours.model.push_to_hub("me/model", index=ours.index)
    assert address == f"{constants.ENDPOINT}/me/model/commit/{1:040x}"
    assert hub.files("me/model").keys() == CHECKPOINT | index_files(ours.index)  # no lock among them
    assert hub.files("me/model")["index/manifest.json"] == (ours.index / "manifest.json").read_bytes()
    assert "me/model" not in hub.private

    loaded = load_model("me/model")
    assert torch.equal(scores(loaded), scores(ours.model))
    assert loaded.config == published(ours.model.config)
    assert (loaded.results, loaded.card) == (RESULTS, None)
    assert hub.downloads("model.safetensors") == ["model.safetensors"]
    assert hub.downloads("index/*") == []
    linker = Linker.from_pretrained("me/model")
    assert set(hub.downloads("index/*")) == index_files(ours.index)
    assert hub.downloads("model.safetensors") == ["model.safetensors"]  # the first one's
    files = [linker.index.path / file.name for file in linker.index.manifest.files]
    assert all(path.is_symlink() for path in files)  # into the cache's blobs
    linker.index.verify(progress=False)
    expected = Linker(ours.model, index=EntityIndex.open(ours.index)).link(MENTIONS, k=3)
    assert linker.link(MENTIONS, k=3) == expected
    assert (
        'Linker.from_pretrained("me/model")  # links to the 12 entities' in hub.files("me/model")["README.md"].decode()
    )


def test_an_index_of_the_same_file_names_comes_with_its_weights(ours: Made, hub: FakeHub, tmp_path: Path) -> None:
    """Whatever commit is downloaded, before, during or after a push, is of one model: sizes, too, are the same here."""
    changed = other(ours.model)
    encode(changed, ours.data, tmp_path / "new")
    assert index_files(tmp_path / "new") == index_files(ours.index)
    expected = []
    for model, index in ((ours.model, ours.index), (changed, tmp_path / "new")):
        model.push_to_hub("me/model", index=index)
        expected.append(Linker(model, index=EntityIndex.open(index)).link(MENTIONS, k=2))
    assert hub.files("me/model").keys() == CHECKPOINT - {"metrics.json"} | index_files(tmp_path / "new")
    revisions = [f"{number:040x}" for number in range(1, len(hub.commits["me/model"]))]
    assert [Linker.from_pretrained("me/model", revision=one).link(MENTIONS, k=2) for one in revisions] == expected
    assert expected[0] != expected[1]


def test_a_push_without_an_index_takes_the_old_one_away(ours: Made, hub: FakeHub) -> None:
    ours.model.push_to_hub("me/model", index=EntityIndex.open(ours.index, ours.model))
    hub.commits["me/model"].append(hub.files("me/model") | {"figure.png": b"theirs"})
    ours.model.push_to_hub("me/model")
    assert hub.files("me/model").keys() == CHECKPOINT | {"figure.png"}
    assert 'kb="DIR"' in hub.files("me/model")["README.md"].decode()
    with pytest.raises(InputError, match=r"kb: expected a data set folder \(the checkpoint names none\), got nothing"):
        Linker.from_pretrained("me/model")
    assert len(Linker.from_pretrained("me/model", ours.data).index) == 12


def test_metrics_and_calibration_of_other_weights_do_not_stay(ours: Made, hub: FakeHub) -> None:
    model = other(ours.model)
    model.results, model.calibration = RESULTS, CALIBRATION
    model.push_to_hub("me/model")
    assert load_model("me/model").calibration == CALIBRATION
    model.results = model.calibration = None
    model.push_to_hub("me/model")
    assert hub.files("me/model").keys() == CHECKPOINT - {"metrics.json"}
    loaded = load_model("me/model")
    assert (loaded.results, loaded.calibration) == (None, None)


def test_private_and_saved_and_pushed_at_once(ours: Made, hub: FakeHub, tmp_path: Path) -> None:
    place = tmp_path / "model"
    address = ours.model.save_pretrained(
        place, index=ours.index, push_to_hub=True, repo_id="me/secret", private=True, token=hub.token
    )
    assert address is not None and address.startswith(f"{constants.ENDPOINT}/me/secret/commit/")
    assert hub.private == {"me/secret"}
    assert hub.files("me/secret").keys() == below(place) | {".gitattributes"}
    assert torch.equal(scores(M3EL.from_pretrained("me/secret", token=hub.token)), scores(ours.model))
    assert Linker.from_pretrained("me/secret", token=hub.token).link(MENTIONS)


def test_an_interrupted_download_goes_on(ours: Made, hub: FakeHub) -> None:
    ours.model.push_to_hub("me/model", index=ours.index)
    name = max(index_files(ours.index), key=lambda file: len(hub.files("me/model")[file]))
    hub.cut[name] = 100
    linker = Linker.from_pretrained("me/model")
    linker.index.verify(progress=False)
    assert hub.downloads(name) == [name, name]
    assert not hub.cut


def test_what_is_cached_works_without_the_hub(ours: Made, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.model.push_to_hub("me/model", index=ours.index)
    load_model("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(scores(load_model("me/model")), scores(ours.model))
    with pytest.raises(
        InputError, match="me/model: expected a checkpoint folder or a Hub name, got no such folder, an"
    ):
        Linker.from_pretrained("me/model")  # the index is not in the cache
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Linker.from_pretrained("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Linker.from_pretrained("me/model").link(MENTIONS)


def test_towers_from_a_folder_are_published_by_its_name(hub: FakeHub, tmp_path: Path) -> None:
    maker = next(iter(made.WHOLE.values()))
    encoder = {"pretrained": str(maker(tmp_path / "clip")), "max_text_tokens": made.LT, "dv": 8}
    config = RunConfig.parse({"model": {"type": "m3el", "d": 8}, "encoder": encoder}, "test")
    model = build_model(config, Encoder.create(config.encoder)).eval()
    model.push_to_hub("me/clip-m3el")
    named = [name for name, content in hub.files("me/clip-m3el").items() if str(tmp_path).encode() in content]
    assert named == []
    loaded = load_model("me/clip-m3el")
    assert loaded.config.encoder.pretrained == "clip"
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


# -- the card on the hub ----------------------------------------------------------------------------------------------


def test_a_card_that_was_edited_on_the_hub_stays(ours: Made, hub: FakeHub, tmp_path: Path) -> None:
    ours.model.push_to_hub("me/model", model_card_kwargs={"license": "mit"})
    assert b"\nlicense: mit\n" in hub.files("me/model")["README.md"]
    ours.model.push_to_hub("me/model")
    assert b"license" not in hub.files("me/model")["README.md"].split(b"---")[1]  # nobody had edited it
    hub.commits["me/model"].append(hub.files("me/model") | {"README.md": b"# Written on the Hub\n"})
    ours.model.push_to_hub("me/model")
    assert hub.files("me/model")["README.md"] == b"# Written on the Hub\n"
    ours.model.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("# Written here\n")
    load_model(tmp_path / "a").push_to_hub("me/model")
    assert hub.files("me/model")["README.md"] == b"# Written here\n"


def test_metadata_does_not_go_into_an_edited_card(ours: Made, hub: FakeHub, tmp_path: Path) -> None:
    mine, license = b"# mine\n", {"license": "mit"}
    message = r"README.md: expected a card that metadata can be written into, got one that was edited. State license in"
    ours.model.push_to_hub("me/model")
    hub.commits["me/model"].append(hub.files("me/model") | {"README.md": mine})
    commits = len(hub.commits["me/model"])
    with pytest.raises(InputError, match=message):
        ours.model.push_to_hub("me/model", model_card_kwargs=license)
    ours.model.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_bytes(mine)
    before = below(tmp_path / "a")
    with pytest.raises(InputError, match=message):
        ours.model.save_pretrained(tmp_path / "a", index=ours.index, model_card_kwargs=license)
    assert (len(hub.commits["me/model"]), below(tmp_path / "a")) == (commits, before)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_an_index_of_other_weights_is_refused_before_anything_is_sent(ours: Made, hub: FakeHub, tmp_path: Path) -> None:
    changed = other(ours.model)
    message = r"index: expected an index of this model \(m3el, \w+\), got one of another .* Build it again with this"
    for index in (ours.index, str(ours.index), EntityIndex.open(ours.index)):
        with pytest.raises(InputError, match=message):
            changed.push_to_hub("me/model", index=index)
        with pytest.raises(InputError, match=message):
            changed.save_pretrained(tmp_path / "a", index=index)
    with pytest.raises(InputError, match=r"nothing: expected an entity index, a folder with manifest\.json, got none"):
        changed.push_to_hub("me/model", index=tmp_path / "nothing")
    assert hub.asked == []
    assert not (tmp_path / "a").exists()


Call = Callable[[MELModel], object]
REFUSALS: dict[str, tuple[Call, str]] = {
    "no-repository": (
        lambda model: load_model("me/none"),
        "me/none: expected a checkpoint folder or a Hub name, got no such folder, and the Hub says: 401 .* Not Found",
    ),
    "linker": (
        lambda model: Linker.from_pretrained("me/none"),
        "me/none: expected a checkpoint folder or a Hub name, got no such folder, and the Hub says: 401 .* Not Found",
    ),
    "revision": (
        lambda model: Linker.from_pretrained("me/there", revision="v9"),
        "me/there: expected a checkpoint folder or a Hub name, got .*Revision Not Found .* Invalid rev id: v9",
    ),
    "no-checkpoint": (
        lambda model: load_model("me/there"),
        r".*/snapshots/0+: expected a checkpoint folder with config.yaml and model.safetensors, got no config.yaml",
    ),
    "private": (
        lambda model: M3EL.from_pretrained("me/hidden", token="hf_wrong"),
        "me/hidden: expected a checkpoint folder or a Hub name, got .* the Hub says: 401 .*Repository Not Found",
    ),
    "token": (
        lambda model: model.push_to_hub("me/model", token="hf_wrong"),
        "me/model: expected a repository to write to, got a refusal of the Hub: .*401.* Invalid username or password",
    ),
    "another-owner": (
        lambda model: model.push_to_hub("other/model"),
        "other/model: expected a repository to write to, got a refusal of the Hub: .*403.* You don't have the rights",
    ),
    "branch": (
        lambda model: model.push_to_hub("me/there", branch="dev"),
        "me/there: expected a repository to write to, got a refusal of the Hub: .*Revision Not Found",
    ),
    "metadata": (
        lambda model: model.push_to_hub("me/model", model_card_kwargs={"license": "none-such"}),
        "me/model: expected a repository to write to, got .* Invalid metadata in README.md. - .license. must be one of",
    ),
    "name": (
        lambda model: model.push_to_hub("me/my model"),
        "me/my model: expected a Hub name like owner/model, got Repo id must use alphanumeric chars",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_the_hub_refuses_is_one_line(call: Call, message: str, ours: Made, hub: FakeHub) -> None:
    hub.commits |= {"me/there": [{".gitattributes": b""}], "me/hidden": [{".gitattributes": b""}]}
    hub.private.add("me/hidden")
    with pytest.raises(InputError, match="^" + message) as refusal:
        call(ours.model)
    assert "\n" not in str(refusal.value)


def test_no_hub_at_all(ours: Made, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        InputError, match=r"me/model: expected a repository to write to, got no connection to http://127\."
    ):
        ours.model.push_to_hub("me/model")
    with pytest.raises(
        InputError, match="me/model: expected a checkpoint folder or a Hub name, got no such folder, and"
    ):
        load_model("me/model")


# -- an index in the checkpoint's folder ------------------------------------------------------------------------------


def test_a_checkpoint_folder_with_an_index(ours: Made, tmp_path: Path) -> None:
    place = tmp_path / "model"
    (ours.index / "lock").touch()
    ours.model.save_pretrained(place, index=ours.index)
    assert below(place) == CHECKPOINT - {".gitattributes"} | index_files(ours.index)
    for file in index_files(ours.index) - {"index/manifest.json"}:
        assert (place / file).samefile(ours.index / Path(file).name)  # a hard link
    expected = Linker(ours.model, index=EntityIndex.open(ours.index)).link(MENTIONS, k=3)
    assert Linker.from_pretrained(place).link(MENTIONS, k=3) == expected
    shutil.move(place, tmp_path / "moved")
    assert Linker.from_pretrained(tmp_path / "moved").link(MENTIONS, k=3) == expected
    # a KB or an index that is given takes its place
    kb = Linker.from_pretrained(tmp_path / "moved", ours.data)
    assert kb.index.path.parent != tmp_path / "moved"
    assert Linker.from_pretrained(tmp_path / "moved", index=ours.index).index.path == ours.index


def test_what_saving_again_does_to_the_index(ours: Made, tmp_path: Path) -> None:
    place = tmp_path / "model"
    ours.model.save_pretrained(place, index=ours.index)
    files = below(place)
    ours.model.save_pretrained(place)  # the same weights: it stays
    assert below(place) == files
    ours.model.save_pretrained(place, index=place / "index")
    assert below(place) == files
    EntityIndex.open(place / "index").verify(progress=False)
    assert "links to the 12 entities" in (place / "README.md").read_text()
    EntityIndex.open(place / "index").remove(["Q3"])
    ours.model.save_pretrained(place)
    assert len(EntityIndex.open(place / "index", ours.model)) == 11
    assert len(EntityIndex.open(ours.index, ours.model)) == 12  # the one that it was linked from
    other(ours.model).save_pretrained(place)  # of no use any more
    assert not (place / "index").exists()


def test_a_save_that_fails_in_the_index_leaves_what_was_there(ours: Made, tmp_path: Path) -> None:
    place, broken = tmp_path / "model", tmp_path / "broken"
    ours.model.save_pretrained(place)
    before = below(place)
    index = EntityIndex.open(shutil.copytree(ours.index, broken))
    (broken / index.manifest.files[-1].name).unlink()
    with pytest.raises((InputError, OSError)):
        ours.model.save_pretrained(place, index=index)
    assert below(place) == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "broken"}


def test_files_are_copied_where_they_cannot_be_linked(
    ours: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr("m3el_fast.checkpoint.os.link", refuse)
    ours.model.save_pretrained(tmp_path / "model", index=ours.index)
    index = EntityIndex.open(tmp_path / "model" / "index", ours.model)
    index.verify(progress=False)
    assert not any((index.path / file.name).samefile(ours.index / file.name) for file in index.manifest.files)


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(ours: Made, tmp_path: Path) -> Path:
    ours.model.save_pretrained(tmp_path / "model", index=ours.index)
    return tmp_path / "model"


def test_the_push_command(
    ours: Made, saved: Path, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub_command(["push", str(saved), "me/model", "--private", "--license", "mit"])
    assert capsys.readouterr().out == f"{constants.ENDPOINT}/me/model/commit/{1:040x}\n"
    assert hub.private == {"me/model"}
    assert hub.files("me/model").keys() == CHECKPOINT | index_files(ours.index)
    assert b"license: mit" in hub.files("me/model")["README.md"]
    (tmp_path / "mentions.jsonl").write_text('{"mention": "Elm", "sentence": "We saw the inn number 0"}\n')
    link_command(
        ["me/model", "--input", str(tmp_path / "mentions.jsonl"), "--output", str(tmp_path / "links.jsonl"), "-k", "2"]
    )
    assert capsys.readouterr().out.startswith(f"1 mentions linked to 12 entities: {tmp_path / 'links.jsonl'}\n")
    shutil.rmtree(saved / "index")
    hub_command(["push", str(saved), "me/other", "--index", str(ours.index)])
    hub_command(["push", "me/other", "me/copy"])
    assert hub.files("me/copy").keys() == hub.files("me/other").keys() == CHECKPOINT | index_files(ours.index)
    assert hub.private == {"me/model"}


def test_a_dry_run_sends_nothing(ours: Made, saved: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["push", str(saved), "me/model", "--dry-run"]
    hub_command([*arguments, "--license", "mit", "--private"])
    first, *rows, total, card = capsys.readouterr().out.splitlines()
    assert first == f"would go to {constants.ENDPOINT}/me/model, private if it is new:"
    listed = {name: int(size.replace(",", "")) for size, name in (row.split() for row in rows)}
    assert listed.keys() == CHECKPOINT - {".gitattributes"} | index_files(ours.index)
    assert total.split() == [f"{sum(listed.values()):,}", "bytes", "in", str(len(listed)), "files"]
    for name in {"README.md", "metrics.json", "model.safetensors"} | index_files(ours.index):
        assert listed[name] == (saved / name).stat().st_size
    assert card == f"card: {saved / 'README.md'}, written; what you change in it is kept"
    assert b"\nlicense: mit\n" in (saved / "README.md").read_bytes()
    assert b'"me/model"' in (saved / "README.md").read_bytes()
    (saved / "README.md").write_text("# mine\n")
    hub_command(arguments)
    assert capsys.readouterr().out.splitlines()[-1] == f"card: {saved / 'README.md'}, as it was edited"
    assert (saved / "README.md").read_text() == "# mine\n"
    assert hub.asked == []
    hub_command(["push", str(saved), "me/model"])
    assert hub.files("me/model")["README.md"] == b"# mine\n"
    assert {name: len(hub.files("me/model")[name]) for name in listed if name != "README.md"} == {
        name: size for name, size in listed.items() if name != "README.md"
    }


def test_a_dry_run_of_a_hub_name_shows_the_card(saved: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(saved).push_to_hub("me/model")
    before = len(hub.commits["me/model"])
    capsys.readouterr()
    hub_command(["push", "me/model", "me/copy", "--dry-run"])
    card = "---\n" + capsys.readouterr().out.split("\n---\n", 1)[1]
    assert re.search(r"^# copy$", card, re.M) and edited(card.rstrip().encode()) is None
    assert (len(hub.commits["me/model"]), "me/copy" in hub.commits) == (before, False)


COMMANDS: dict[str, tuple[list[str], str]] = {
    "no-checkpoint": (
        ["push", "{tmp}/none", "me/model"],
        "{tmp}/none: expected a checkpoint folder or a Hub name like owner/model, got no such folder",
    ),
    "name": (["push", "{tmp}/none", "a/b/c"], "a/b/c: expected a Hub name like owner/model, got Repo id must be in"),
    "no-index": (
        ["push", "{model}", "me/model", "--index", "{tmp}/none"],
        "{tmp}/none: expected an entity index, a folder with manifest.json, got none",
    ),
    "other-index": (
        ["push", "{model}", "me/model", "--index", "{tmp}/other", "--dry-run"],
        "{tmp}/other: expected an index of this model (",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), COMMANDS.values(), ids=COMMANDS)
def test_the_push_command_refuses_in_one_line(
    arguments: list[str],
    message: str,
    ours: Made,
    saved: Path,
    hub: FakeHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "{tmp}/other" in arguments:
        encode(other(ours.model), ours.data, tmp_path / "other")
    places: dict[str, Any] = {"tmp": tmp_path, "model": saved}
    found = failure(hub_command, [argument.format(**places) for argument in arguments], capsys)
    assert found.startswith(message.format(**places))
    assert hub.asked == []
