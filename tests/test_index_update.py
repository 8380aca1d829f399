"""Adding to an entity index and removing from it: against a dict, beside readers, and through kills."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from index_cases import Case, files, in_child, item_of, killed_at, make_case
from m3el_fast.dataset import load_dataset
from m3el_fast.encode import KBEncoder
from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex, fill, plan, update
from m3el_fast.index.folder import writer_lock
from m3el_fast.scoring.identity import Identity
from tiny import tiny_model


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("index") / "data")


@pytest.fixture(scope="module")
def built(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of entities 0 to 7, to copy."""
    return case.build(tmp_path_factory.mktemp("built") / "index", range(8)).path


@pytest.fixture
def index(built: Path, tmp_path: Path) -> EntityIndex:
    return EntityIndex.open(shutil.copytree(built, tmp_path / "index"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many images and items were encoded."""
    counts = {"images": 0, "items": 0}

    def counted(name: str) -> Callable[..., Iterator[Any]]:
        original = getattr(KBEncoder, name)

        def count(*args: Any) -> Iterator[Any]:
            for piece, *rest in original(*args):
                counts[name] += piece.stop - piece.start
                yield piece, *rest

        return count

    for name in counts:
        monkeypatch.setattr(KBEncoder, name, counted(name))
    return counts


def add(case: Case, index: EntityIndex, rows: list[int], ids: list[str] | None = None) -> EntityIndex:
    ids = [case.ids[row] for row in rows] if ids is None else ids
    return index.add(case.model, case.source(rows), ids=ids, progress=False)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_added_entities_are_as_if_built_in(case: Case, index: EntityIndex) -> None:
    later = add(case, index, [8, 9, 10, 11])
    whole = case.build()
    assert list(later.ids) == case.ids
    assert list(later.row) == case.ids
    assert later.manifest.version == 2
    for name in ("image_index", "text_key", "union_key", "live"):
        assert torch.equal(getattr(later, name), getattr(whole, name)), name
    for row in range(12):
        for name, values in item_of(later, row).items():
            close = {"rtol": 2.0**-7, "atol": 1e-5} if values.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(values, item_of(whole, row)[name], **close)
    assert [(block.start, block.stop) for block in later.blocks(5)] == [(0, 5), (5, 8), (8, 12)]
    later.verify(progress=False)


def test_images_that_are_there_are_not_stored_again(case: Case, index: EntityIndex) -> None:
    later = add(case, index, [8, 10])  # a known image, and none
    assert (index.visual_rows, later.visual_rows) == (4, 5)
    assert later.image_index[8] == index.image_index[0]
    again = add(case, later, [11])
    assert again.visual_rows == 5
    assert again.image_index[10] == later.image_index[9]


def test_images_are_known_by_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3EL_CACHE", str(tmp_path / "cache"))
    first = make_case(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    for path in (tmp_path / "other" / "kb_image").iterdir():  # the same pixels in other files
        Image.open(path).save(path.with_suffix(".png"))
        shutil.move(path.with_suffix(".png"), path)
    monkeypatch.setenv("M3EL_CACHE", str(tmp_path / "another cache"))
    data = load_dataset(first.config.data, tmp_path / "other", first.model.encoder, [], progress=False)
    second = Case(first.config, first.model, data)
    index = first.build(tmp_path / "index", [0, 1])
    later = add(second, index, [1, 2], ["a", "b"])
    assert later.visual_rows == 3
    assert later.image_index.tolist() == [0, 1, 1, 2]


def test_identical_entities_are_copied_bit_for_bit(case: Case, index: EntityIndex, encoded: dict[str, int]) -> None:
    later = add(case, index, [5, 2], ["a", "b"])
    assert encoded == {"images": 0, "items": 0}
    assert same(item_of(later, 8), item_of(index, 5))
    assert same(item_of(later, 9), item_of(index, 2))


def test_cost_is_that_of_the_change(case: Case, index: EntityIndex, encoded: dict[str, int]) -> None:
    before = files(index.path)
    later = add(case, index, [8])
    assert encoded == {"images": 2, "items": 2}  # one of each for the sizes
    after = add(case, later, [10]).remove(["Q0", "Q8"])
    for name, content in before.items():
        if name != "manifest.json":
            assert files(index.path)[name] == content
    new = {name: len(content) for name, content in files(index.path).items() if name not in before}
    assert len(new) == 5
    assert max(new.values()) <= 2 * 4096
    assert len(after) == 8


def test_removed_entities_are_gone(case: Case, index: EntityIndex) -> None:
    later = index.remove(["Q3", "Q0"])
    assert len(later) == 6
    assert later.rows == 8
    assert later.live.tolist() == [False, True, True, False, True, True, True, True]
    assert "Q3" not in later.row
    assert later.find(["Q3", "Q4"]).tolist() == [-1, 4]
    assert torch.cat([block.live for block in later.blocks(3)]).tolist() == later.live.tolist()
    back = add(case, later, [3])
    assert (len(back), back.rows, back.row["Q3"]) == (7, 9, 8)
    assert back.live[3].item() is False
    assert same(item_of(back, 8), item_of(index, 3))
    assert EntityIndex.open(index.path).row == back.row


def test_identical_entities_are_counted_among_the_live_ones(case: Case, index: EntityIndex) -> None:
    later = add(case, add(case, index, [1], ["a"]), [1, 1], ["b", "c"])
    matcher = case.model.matcher
    assert Identity(matcher, later).occurrence[[1, 8, 9, 10]].tolist() == [0, 1, 2, 3]
    assert Identity(matcher, later.remove(["Q1", "b"])).occurrence[[8, 10]].tolist() == [0, 1]


def test_all_may_be_removed(case: Case, index: EntityIndex) -> None:
    none = index.remove(case.ids[:8])
    assert len(none) == 0
    assert not none.row
    assert list(add(case, none, [4]).row) == ["Q4"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 11), min_size=1, max_size=5, unique=True)),
        min_size=1,
        max_size=6,
    )
)
def test_any_sequence_is_that_of_a_dict(case: Case, built: Path, changes: list[tuple[bool, list[int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = EntityIndex.open(shutil.copytree(built, Path(folder) / "index"))
        model = dict(zip(case.ids[:8], range(8), strict=True))
        versions: list[tuple[EntityIndex, dict[str, int]]] = [(index, dict(model))]
        for adds, rows in changes:
            ids = [case.ids[row] for row in rows]
            there = [one in model for one in ids]
            if not any(there) if adds else all(there):
                index = add(case, index, rows) if adds else index.remove(ids)
                model = {one: row for one, row in model.items() if one not in ids} | (
                    dict(zip(ids, rows, strict=True)) if adds else {}
                )
                versions.append((index, dict(model)))
            else:
                with pytest.raises(InputError, match="ids that are"):
                    add(case, index, rows) if adds else index.remove(ids)
        reference = reference_rows(case)
        for version, expected in [*versions, (EntityIndex.open(index.path), model)]:
            assert set(version.row) == set(expected)
            assert len(version) == len(expected) == int(version.live.sum())
            assert version.find(case.ids).tolist() == [version.row.get(one, -1) for one in case.ids]
            for one, row in version.row.items():
                assert version.ids[row] == one
                found = item_of(version, row)["text.global"]
                torch.testing.assert_close(found, reference[expected[one]], rtol=1e-4, atol=1e-5)
        index.verify(progress=False)


def reference_rows(case: Case) -> Tensor:
    return case.model.entity_side(case.data.entities.inputs(torch.arange(12))).item["text.global"]


# -- readers and writers -----------------------------------------------------------------------------------------------


def test_a_reader_keeps_its_version(case: Case, index: EntityIndex) -> None:
    before = [item_of(index, row) for row in range(8)]
    live, row = index.live.clone(), dict(index.row)
    other = EntityIndex.open(index.path)
    add(case, other, [8, 9]).remove(["Q1", "Q8"])
    assert len(index) == 8
    assert torch.equal(index.live, live)
    assert index.row == row
    assert all(same(item_of(index, i), before[i]) for i in range(8))
    assert len(EntityIndex.open(index.path)) == 8
    later = index.remove(["Q9"])  # from the newest version, whatever this one is
    assert set(later.row) == {"Q0", "Q2", "Q3", "Q4", "Q5", "Q6", "Q7"}


def test_readers_beside_a_writer_see_whole_versions(case: Case, index: EntityIndex) -> None:
    sizes = {8, 9}
    found: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            version = EntityIndex.open(index.path)
            total = sum(int(block.live.sum()) for block in version.blocks(3))
            assert total == len(version) == len(version.row)
            found.append(total)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        index = add(case, index, [8]).remove(["Q8"])
    stop.set()
    for thread in threads:
        thread.join()
    assert set(found) <= sizes
    assert len(found) >= 3  # no reader ended early, by an error


def test_a_writer_locks_out_a_second_one(case: Case, index: EntityIndex) -> None:
    def refused(change: Any) -> None:
        with pytest.raises(InputError, match="expected no other writer, got one that is at work"):
            change()

    before = files(index.path)
    with writer_lock(index.path):
        for change in (lambda: add(case, index, [8]), lambda: index.remove(["Q0"])):
            refused(change)
            assert in_child(lambda change=change: refused(change)) == 0
        assert len(EntityIndex.open(index.path)) == 8  # readers are welcome
    assert files(index.path) == before
    assert len(index.remove(["Q0"])) == 7


@pytest.mark.parametrize("change", ["add", "remove"])
def test_a_kill_at_any_moment_leaves_one_of_both_versions(
    change: str, case: Case, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(plan, "CHUNK", 1)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what was written outlives a process without it

    def work(index: EntityIndex) -> EntityIndex:
        return add(case, index, [8, 10]) if change == "add" else index.remove(["Q2", "Q3"])

    expected = work(EntityIndex.open(shutil.copytree(built, tmp_path / "whole")))
    seen = set()
    call = 0
    while True:
        index = EntityIndex.open(shutil.copytree(built, tmp_path / f"index{call}"))
        killed = killed_at(lambda index=index: work(index), call)
        after = EntityIndex.open(index.path)
        after.verify(progress=False)
        seen.add(len(after))
        if len(after) == 8:
            work(after)
        else:
            EntityIndex.open(index.path).remove(["Q0"])  # a writer clears up what was left
            add(case, EntityIndex.open(index.path), [0])
        assert files(index.path).keys() == files_of(index.path)
        if len(after) == 8:
            assert files(index.path) == files(expected.path)
        shutil.rmtree(index.path)
        if not killed:
            break
        call += 3 if change == "add" else 1
    assert seen == {8, len(expected)}
    assert call > 5


def files_of(path: Path) -> set[str]:
    return {file.name for file in EntityIndex.open(path).manifest.files} | {"manifest.json"}


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_refuses_ids(case: Case, index: EntityIndex) -> None:
    before = files(index.path)
    for change, message in (
        (lambda: add(case, index, [8, 3]), r"ids that are not in the index \(1 are\), got 'Q3'"),
        (lambda: add(case, index, [8, 9], ["a", "a"]), "each id once, got 'a' again"),
        (lambda: add(case, index, [8], ["a", "b"]), "one for each of 1 entities, got 2"),
        (lambda: index.remove(["Q1", "Q9"]), r"ids that are in the index \(1 are not\), got 'Q9'"),
        (lambda: index.remove(["Q1", "Q1"]), "each id once, got 'Q1' again"),
        (lambda: index.remove([]), "at least one entity"),
        (lambda: index.remove(["Q0"]).remove(["Q0"]), "got 'Q0'"),
    ):
        with pytest.raises(InputError, match=message):
            change()
        assert EntityIndex.open(index.path).find(["Q9", "a"]).tolist() == [-1, -1]
    assert len(files(index.path)) == len(before) + 1  # of the one removal


def test_refuses_another_model(case: Case, index: EntityIndex) -> None:
    other = tiny_model(case.config, seed=2)
    with pytest.raises(InputError, match=r"an index of this model .* got one of another .*Build it again"):
        index.add(other, case.source([8]), ids=["a"], progress=False)
    with pytest.raises(InputError, match="an index of this model"):
        EntityIndex.open(index.path, other)
    assert EntityIndex.open(index.path, case.model).rows == 8


def test_refuses_features_that_are_not_finite(case: Case, index: EntityIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    original = KBEncoder.items

    def spoiled(self: KBEncoder, *args: Any) -> Iterator[Any]:
        for piece, item in original(self, *args):
            yield piece, item | {"cross.t2v": torch.full_like(item["cross.t2v"], torch.nan)}

    monkeypatch.setattr(KBEncoder, "items", spoiled)
    before = files(index.path)
    with pytest.raises(InputError, match=r"entity 'Q8', cross\.t2v: expected finite features, got nan"):
        add(case, index, [8])
    assert files(index.path) == before


def test_refuses_dims_of_another_model(case: Case, index: EntityIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    original = KBEncoder.items

    def narrow(self: KBEncoder, *args: Any) -> Iterator[Any]:
        for piece, item in original(self, *args):
            yield piece, item | {"text.query": item["text.query"][:, :, :-1]}

    monkeypatch.setattr(KBEncoder, "items", narrow)
    with pytest.raises(
        InputError, match=r"text\.query: expected rows of shape \[12, 8\], as in the index, got \[12, 7\]"
    ):
        add(case, index, [8])


def test_refuses_too_little_disk(case: Case, index: EntityIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(index.path)

    def none(folder: Path, needed: int) -> None:
        assert needed > 0
        raise InputError(folder, "more", "less")

    monkeypatch.setattr(update, "require_space", none)
    with pytest.raises(InputError, match="expected more"):
        add(case, index, [8])
    assert files(index.path) == before


def test_refuses_a_folder_that_is_no_index(case: Case, tmp_path: Path, index: EntityIndex) -> None:
    shutil.move(index.path, tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"an entity index, a folder with manifest\.json"):
        index.remove(["Q0"])
    assert not index.path.exists()
