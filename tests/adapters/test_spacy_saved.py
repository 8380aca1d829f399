"""Saved pipelines with the spaCy component, and its copies in other processes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex
from m3el_fast.index.manifest import Manifest
from tiny import tiny_config, tiny_model

spacy = pytest.importorskip("spacy", reason="spaCy is not installed: pip install -e '.[spacy]'")

from spacy.language import Language  # noqa: E402

import m3el_fast.adapters.spacy as adapter  # noqa: E402
from adapters.spacy_cases import NAMES, TEXT, Folders, kb_ids, linked, pipeline, write_entry_point, write_folders  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folders(made: Folders, tmp_path: Path) -> Folders:
    """Copies that a test may move or damage."""
    copy = Path(shutil.copytree(made.data.parent, tmp_path / "author"))
    return Folders(copy / "data", copy / "checkpoint", copy / "index")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("spacy"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def component(nlp: Language) -> adapter.M3ELLinker:
    found = nlp.get_pipe("m3el_linker")
    assert isinstance(found, adapter.M3ELLinker)
    return found


# -- folders ----------------------------------------------------------------------------------------------------------

FRESH = """
import json, sys, spacy
spacy.blank("en")  # imports the module of every entry point, and nothing that is slow
assert "m3el_fast.adapters.spacy" in sys.modules and "m3el_fast.link" not in sys.modules
doc = spacy.load("moved")(sys.argv[1])
print(json.dumps([[ent.text, ent.kb_id_, ent._.kb_score, ent._.kb_candidates] for ent in doc.ents]))
"""


def test_a_saved_pipeline_needs_nothing_else(folders: Folders, tmp_path: Path) -> None:
    """In a new process, in another folder, without the author's; only the entry point leads to the component."""
    nlp = pipeline(folders.config)
    expected = linked(nlp(TEXT))
    nlp.to_disk(tmp_path / "saved")
    shutil.rmtree(folders.data.parent)
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(write_entry_point(tmp_path / "site")), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, TEXT], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [tuple(one) for one in json.loads(done.stdout)] == expected


def test_a_kb_is_saved_as_its_index(folders: Folders, tmp_path: Path) -> None:
    nlp = pipeline({"checkpoint": str(folders.checkpoint), "kb": str(folders.data), "k": 3})
    expected = linked(nlp(TEXT))
    assert [one[1] for one in expected] == kb_ids(pipeline(folders.config)(TEXT))
    nlp.to_disk(tmp_path / "saved")
    shutil.rmtree(folders.data.parent)
    assert linked(spacy.load(tmp_path / "saved")(TEXT)) == expected


def test_settings_can_be_overridden(folders: Folders, tmp_path: Path) -> None:
    nlp = pipeline(folders.config)
    nlp.to_disk(tmp_path / "saved")
    overrides = {"components": {"m3el_linker": {"threshold": 1e9, "k": 1}}}
    doc = spacy.load(tmp_path / "saved", config=overrides)(TEXT)
    assert kb_ids(doc) == ["NIL"] * 3
    assert [len(ent._.kb_candidates) for ent in doc.ents] == [1] * 3


def test_only_what_the_open_version_needs_is_saved(folders: Folders, tmp_path: Path) -> None:
    nlp = pipeline(folders.config)
    nlp(TEXT)
    EntityIndex.open(folders.index).remove(["Q0", "Q1"])  # by another, after it was opened
    (folders.index / "stray.txt").write_text("x")
    component(nlp).to_disk(tmp_path / "saved")
    assert len(EntityIndex.open(tmp_path / "saved" / "index")) == 12
    EntityIndex.open(tmp_path / "saved" / "index").verify(progress=False)
    assert not (tmp_path / "saved" / "index" / "stray.txt").exists()
    assert not [path for path in (tmp_path / "saved" / "index").iterdir() if path.name.startswith("removed")]


def test_saving_again_in_its_own_place(folders: Folders, tmp_path: Path) -> None:
    pipeline(folders.config).to_disk(tmp_path / "saved")
    nlp = spacy.load(tmp_path / "saved")
    expected, saved = linked(nlp(TEXT)), files(tmp_path / "saved" / "m3el_linker")
    for exclude in ([], ["index"]):
        component(nlp).to_disk(tmp_path / "saved" / "m3el_linker", exclude=exclude)
        assert files(tmp_path / "saved" / "m3el_linker") == saved
    assert linked(nlp(TEXT)) == expected == linked(spacy.load(tmp_path / "saved")(TEXT))


def test_the_index_may_stay_where_it_is(folders: Folders, tmp_path: Path) -> None:
    nlp = pipeline(folders.config)
    expected = linked(nlp(TEXT))
    component(nlp).to_disk(tmp_path / "saved", exclude=["index"])
    assert not (tmp_path / "saved" / "index").exists()
    shutil.rmtree(folders.checkpoint)
    other = pipeline(folders.config)
    component(other).from_disk(tmp_path / "saved")
    assert linked(other(TEXT)) == expected
    assert component(other).linker.index.path == folders.index
    component(nlp).to_disk(tmp_path / "saved")
    assert component(other).from_disk(tmp_path / "saved").linker.index.path == tmp_path / "saved" / "index"
    assert component(other).from_disk(tmp_path / "saved", exclude=["index"]).linker.index.path == folders.index
    assert linked(other(TEXT)) == expected


def test_a_pipeline_saved_without_the_component(folders: Folders, tmp_path: Path) -> None:
    """The configured folders are opened when they are needed."""
    nlp = pipeline(folders.config)
    nlp.to_disk(tmp_path / "saved", exclude=["m3el_linker"])
    assert not (tmp_path / "saved" / "m3el_linker").exists()
    assert linked(spacy.load(tmp_path / "saved")(TEXT)) == linked(nlp(TEXT))
    with pytest.raises(InputError, match="nowhere: expected a folder that to_disk wrote, got none"):
        component(pipeline({})).from_disk(tmp_path / "nowhere")


def test_nothing_half_written(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nlp = pipeline(folders.config)
    component(nlp).to_disk(tmp_path / "saved")
    before = files(tmp_path / "saved")

    def fail(self: Manifest, folder: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Manifest, "write", fail)  # the last file of all
    for name in ("saved", "new"):
        with pytest.raises(OSError, match="disk full"):
            component(nlp).to_disk(tmp_path / name)
    assert files(tmp_path / "saved") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["author", "saved"]


def test_other_folders_are_not_replaced(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="saved: expected a new folder or a checkpoint to replace"):
        component(pipeline(folders.config)).to_disk(tmp_path / "saved")
    assert files(tmp_path / "saved") == {"thesis.txt": b"x"}


def test_an_index_of_another_model(folders: Folders, tmp_path: Path) -> None:
    nlp = pipeline(folders.config)
    component(nlp).to_disk(tmp_path / "saved")
    expected = linked(nlp(TEXT))
    tiny_model(tiny_config(folders.data), seed=9).save_pretrained(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "model.safetensors", tmp_path / "saved" / "model.safetensors")
    with pytest.raises(InputError, match="expected an index of this model"):
        component(nlp).from_disk(tmp_path / "saved")
    assert linked(nlp(TEXT)) == expected  # as it was before


# -- bytes and processes ----------------------------------------------------------------------------------------------


def test_bytes(folders: Folders) -> None:
    nlp = pipeline(folders.config)
    expected, data = linked(nlp(TEXT)), nlp.to_bytes()
    shutil.rmtree(folders.data.parent)
    other = pipeline({"k": 3}).from_bytes(data)
    assert linked(other(TEXT)) == expected
    place = component(other).linker.index.path
    component(other).from_bytes(component(other).to_bytes())  # from the folder that this replaces
    assert linked(other(TEXT)) == expected
    assert component(other).linker.index.path != place


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-30], lambda data: b"x" * 100])
def test_damaged_bytes(damage: Callable[[bytes], bytes], folders: Folders) -> None:
    one = component(pipeline(folders.config))
    with pytest.raises(InputError, match="from_bytes: expected what to_bytes gave"):
        one.from_bytes(damage(one.to_bytes()))


def test_pickles_carry_places(folders: Folders) -> None:
    nlp = pipeline(folders.config)
    closed = pickle.dumps(component(nlp))
    expected = linked(nlp(TEXT))
    opened = pickle.dumps(component(nlp))
    assert max(len(closed), len(opened)) < 2000
    for data in (closed, opened):
        copy = pickle.loads(data)
        with nlp.select_pipes(disable="m3el_linker"):
            doc = nlp(TEXT)
        assert linked(copy(doc)) == expected
    assert linked(pickle.loads(pickle.dumps(nlp))(TEXT)) == expected


def test_a_pickle_has_the_index_of_a_kb(folders: Folders) -> None:
    """Another process maps the index that was made of the KB, and does not make it again."""
    nlp = pipeline({"checkpoint": str(folders.checkpoint), "kb": str(folders.data)})
    component(nlp).linker.index.verify(progress=False)
    copy = pickle.loads(pickle.dumps(component(nlp)))
    assert copy.linker.index.path == component(nlp).linker.index.path


def test_two_processes(folders: Folders) -> None:
    """Forks share the model and the mapped index of this process."""
    nlp = pipeline(folders.config)
    texts = [TEXT, "Nothing here.", *(f"The {name} stood." for name in NAMES)]
    alone = list(nlp.pipe(texts, batch_size=2))
    shutil.rmtree(folders.checkpoint)  # forks do not read it again
    for process, doc in zip(nlp.pipe(texts, n_process=2, batch_size=2), alone, strict=True):
        assert linked(process) == linked(doc)


@pytest.mark.parametrize("opened", [True, False])
def test_a_fork_has_one_thread(opened: bool, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP's threads are not there after a fork: waiting for them would never end."""
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    one = component(pipeline(folders.config))
    before = one.linker if opened else None
    assert given == []
    monkeypatch.setattr(os, "getpid", lambda: -1)
    after = one.linker
    assert one.linker is after
    assert (after is before) == opened
    assert given == [1]


def test_a_fork_cannot_use_the_gpu(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    one = component(pipeline(folders.config))
    on_gpu: Any = SimpleNamespace(model=SimpleNamespace(device=torch.device("cuda", 0)))
    one._linker = on_gpu
    assert one.linker is on_gpu
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(InputError, match=r"n_process=1 where the linker is on a GPU, .* a process that uses cuda:0"):
        _ = one.linker
