"""m3el_fast/files.py: a folder is the old one or the new one, whatever happens while it is replaced."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from pathlib import Path

import pytest

from index_cases import in_child
from m3el_fast import files
from m3el_fast.files import replace_folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder with one file."""
    folder = tmp_path / "runs" / "model"
    replace(folder, "first")
    return folder


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if request.param == "two renames":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    else:
        require_exchange(tmp_path)


def require_exchange(folder: Path) -> None:
    """Skip where this file system cannot."""
    one, other = folder / "one", folder / "other"
    one.mkdir()
    other.mkdir()
    exchange = getattr(ctypes.CDLL(None), "renameat2", lambda *_: -1)  # what is tested does not decide
    if exchange(-100, os.fsencode(one), -100, os.fsencode(other), 2):
        pytest.skip("needs a file system that can exchange folders")
    assert files._exchange(one, other)


def replace(folder: Path, text: str) -> None:
    with replace_folder(folder) as new:
        (new / f"{text}.txt").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_replaced_as_a_whole(target: Path, way: None) -> None:
    assert content(target) == {"first.txt": "first"}
    replace(target, "second")
    assert content(target) == {"second.txt": "second"}
    assert os.listdir(target.parent) == ["model"]


def test_a_link_gives_way_and_what_it_leads_to_stays(target: Path, way: None) -> None:
    link = target.parent / "link"
    link.symlink_to(target)
    replace(link, "second")
    assert not link.is_symlink()
    assert (content(link), content(target)) == ({"second.txt": "second"}, {"first.txt": "first"})
    assert sorted(os.listdir(target.parent)) == ["link", "model"]


def test_a_link_that_leads_nowhere_gives_way(target: Path, way: None) -> None:
    link = target.parent / "link"
    link.symlink_to("nowhere")
    replace(link, "second")
    assert not link.is_symlink()
    assert content(link) == {"second.txt": "second"}
    assert sorted(os.listdir(target.parent)) == ["link", "model"]


def test_it_has_the_rights_of_any_new_folder(target: Path, way: None) -> None:
    other = target.parent / "other"
    other.mkdir()
    for _ in range(2):
        assert target.stat().st_mode == other.stat().st_mode
        replace(target, "second")


def test_an_old_one_that_cannot_be_removed_is_left_aside(
    target: Path, way: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*args: object, **options: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        replace(target, "second")
    assert content(target) == {"second.txt": "second"}


def test_an_error_leaves_the_old_one(target: Path, way: None) -> None:
    with pytest.raises(OSError, match="disk full"), replace_folder(target) as new:
        (new / "half.txt").write_text("half")
        raise OSError("disk full")
    assert content(target) == {"first.txt": "first"}
    assert os.listdir(target.parent) == ["model"]


@pytest.mark.parametrize("call", [0, 1])
def test_an_interrupt_between_two_renames_leaves_the_old_one(
    call: int, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, left = os.replace, [call]

    def interrupted(one: Path, other: Path) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        original(one, other)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(target, "second")
    assert content(target) == {"first.txt": "first"}
    assert os.listdir(target.parent) == ["model"]


@pytest.mark.parametrize(("before", "left"), [(True, "first"), (False, "second")], ids=["before", "after"])
def test_a_kill_leaves_the_old_one_or_the_new_one(before: bool, left: str, target: Path, tmp_path: Path) -> None:
    require_exchange(tmp_path)

    def killed() -> None:
        original = files._exchange

        def exchange(one: Path, other: Path) -> bool:
            done = before or original(one, other)
            os.kill(os.getpid(), signal.SIGKILL)
            return done

        files._exchange = exchange
        replace(target, "second")

    assert in_child(killed) == signal.SIGKILL
    assert content(target) == {f"{left}.txt": left}
    replace(target, "third")
    assert content(target) == {"third.txt": "third"}


def test_who_looks_always_finds_one(target: Path, tmp_path: Path) -> None:
    require_exchange(tmp_path)
    looked, missing, done = [0], [0], threading.Event()

    def look() -> None:
        while not done.is_set():
            looked[0] += 1
            missing[0] += not target.exists()

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(200):
        replace(target, str(number))
    done.set()
    reader.join()
    assert looked[0] > 100
    assert missing[0] == 0
