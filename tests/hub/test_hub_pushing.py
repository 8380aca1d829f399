"""What goes to the Hub: all of a checkpoint, nothing of an older one, or nothing and one line that says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import encoder_folders as made
from fake_hub import FakeHub
from hub.made import CALIBRATION, CHECKPOINT, MENTIONS, RESULTS, Made, below, other, scores
from m3el_fast.config import RunConfig
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex
from m3el_fast.link import Linker
from m3el_fast.models import M3EL, MELModel, build_model, load_model


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
    hub.commits["me/there"] = [{".gitattributes": b""}]
    with pytest.raises(InputError, match="^" + message) as refusal:
        call(ours.model)
    assert "\n" not in str(refusal.value)


def test_no_hub_at_all(ours: Made, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        InputError, match=r"me/model: expected a repository to write to, got no connection to http://127\."
    ):
        ours.model.push_to_hub("me/model")
