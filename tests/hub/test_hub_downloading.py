"""What went to the Hub comes back, an index too, or one line says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from fake_hub import FakeHub
from hub.made import CHECKPOINT, MENTIONS, RESULTS, Made, encode, index_files, other, scores
from m3el_fast.errors import InputError
from m3el_fast.hub_card import published
from m3el_fast.index import EntityIndex
from m3el_fast.link import Linker
from m3el_fast.models import M3EL, load_model


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


Call = Callable[[], object]
REFUSALS: dict[str, tuple[Call, str]] = {
    "no-repository": (
        lambda: load_model("me/none"),
        "me/none: expected a checkpoint folder or a Hub name, got no such folder, and the Hub says: 401 .* Not Found",
    ),
    "linker": (
        lambda: Linker.from_pretrained("me/none"),
        "me/none: expected a checkpoint folder or a Hub name, got no such folder, and the Hub says: 401 .* Not Found",
    ),
    "revision": (
        lambda: Linker.from_pretrained("me/there", revision="v9"),
        "me/there: expected a checkpoint folder or a Hub name, got .*Revision Not Found .* Invalid rev id: v9",
    ),
    "no-checkpoint": (
        lambda: load_model("me/there"),
        r".*/snapshots/0+: expected a checkpoint folder with config.yaml and model.safetensors, got no config.yaml",
    ),
    "private": (
        lambda: M3EL.from_pretrained("me/hidden", token="hf_wrong"),
        "me/hidden: expected a checkpoint folder or a Hub name, got .* the Hub says: 401 .*Repository Not Found",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_the_hub_refuses_is_one_line(call: Call, message: str, hub: FakeHub) -> None:
    hub.commits |= {"me/there": [{".gitattributes": b""}], "me/hidden": [{".gitattributes": b""}]}
    hub.private.add("me/hidden")
    with pytest.raises(InputError, match="^" + message) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_no_hub_at_all(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"me/model: .* got no such folder, none in the cache, and no connection"):
        load_model("me/model")
