"""A checkpoint in a folder, with an index in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hub.made import CHECKPOINT, MENTIONS, Made, below, index_files, other
from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex
from m3el_fast.link import Linker


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
