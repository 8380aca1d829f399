"""A build of an entity index survives whatever stops it: a full disk, a kill at any moment, an interrupt."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from index_cases import Case, files, in_child, killed_at, make_case, refused
from m3el_fast.encode import KBEncoder
from m3el_fast.errors import InputError
from m3el_fast.index import fill, plan
from tiny import tiny_model


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("index") / "data")


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is saved after each of the three texts, and after every batch of images; the disk makes nobody wait."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what was written outlives a process without it
    monkeypatch.setattr(fill, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(plan, "CHUNK", 1)


# -- disk --------------------------------------------------------------------------------------------------------------


def test_refuses_too_little_disk_before_work(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 10**9 - 1000, 1000))
    rows: list[int] = []
    original = KBEncoder.images
    monkeypatch.setattr(KBEncoder, "images", lambda self, keys, *a: rows.append(len(keys)) or original(self, keys, *a))
    with pytest.raises(InputError, match=r"expected 0\.000 GB free, got 0\.000 GB"):
        case.build(tmp_path / "index")
    assert rows == [1]  # one image, to learn the sizes
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [0, 4096, 6000])
def test_a_disk_that_turns_full(limit: int, case: Case, tmp_path: Path) -> None:
    def build() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        refused(lambda: case.build(tmp_path / "index"), "expected space on the disk, got File too large. Free some")

    assert in_child(build) == 0
    assert not (tmp_path / "index").exists()
    assert len(case.build(tmp_path / "index")) == 12


def test_a_file_system_that_cannot_reserve_space(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    case.build(tmp_path / "whole")
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    case.build(tmp_path / "index")
    assert files(tmp_path / "index") == files(tmp_path / "whole")


def test_another_failure_is_not_a_full_disk(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(OSError, match="Input/output error"):
        case.build(tmp_path / "index")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", range(0, 28, 3))
def test_a_disk_that_turns_full_later(
    call: int, case: Case, tmp_path: Path, restless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [call]
    original = os.pwrite

    def full(*args: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(InputError, match=r"expected space on the disk, got No space left on device\. Free some"):
            case.build(tmp_path / "index")
    assert not (tmp_path / "index").exists()
    case.build(tmp_path / "whole")
    case.build(tmp_path / "index")
    assert files(tmp_path / "index") == files(tmp_path / "whole")


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", range(4))
def test_a_kill_at_any_moment(call: int, case: Case, tmp_path: Path, restless: None) -> None:
    """Together the four kill before every change of a file."""
    rows = (0, 5, 8, 9, 11)  # of each text; twins; one without an image
    case.build(tmp_path / "whole", rows)
    expected = files(tmp_path / "whole")
    ended_before = 0
    while True:
        out = tmp_path / f"index{call}"
        killed = killed_at(lambda out=out: case.build(out, rows), call)
        if out.exists():  # killed after the end, if at all
            ended_before += 1
            assert files(out).items() >= expected.items()
        else:
            case.build(out, rows)
            assert files(out) == expected
            assert not (tmp_path / f".{out.name}.building").exists()
        if not killed:
            break
        shutil.rmtree(out)
        call += 4
    assert call > 50
    assert ended_before < 10


def test_goes_on_where_it_stopped(case: Case, tmp_path: Path, restless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = {"images": 0, "items": 0}
    originals = KBEncoder.images, KBEncoder.items

    def images(self: KBEncoder, keys: Tensor, start: int = 0) -> Iterator[Any]:
        for piece, *rest in originals[0](self, keys, start):
            encoded["images"] += piece.stop - piece.start
            yield piece, *rest

    def items(self: KBEncoder, rows: Tensor, *args: Any) -> Iterator[Any]:
        for piece, item in originals[1](self, rows, *args):
            encoded["items"] += piece.stop - piece.start
            if encoded["items"] > 5 and stop:
                raise KeyboardInterrupt
            yield piece, item

    monkeypatch.setattr(KBEncoder, "images", images)
    monkeypatch.setattr(KBEncoder, "items", items)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        case.build(tmp_path / "index")
    state = json.loads((tmp_path / ".index.building" / "build.json").read_text())
    assert state["done"] == {"images": 5, "items": 4}
    encoded, stop = {"images": 0, "items": 0}, False
    case.build(tmp_path / "index")
    assert encoded == {"images": 1, "items": 1 + 8}  # one of each for the sizes


@pytest.mark.parametrize("change", ["ids", "dtype", "entities", "model"])
def test_what_another_build_left_is_not_used(
    change: str, case: Case, tmp_path: Path, restless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Case(case.config, tiny_model(case.config, seed=2).eval(), case.data) if change == "model" else case
    options: dict[str, Any] = {
        "ids": {"ids": [f"N{row}" for row in range(12)]},
        "dtype": {"dtype": "fp32"},
        "entities": {"rows": list(range(11, -1, -1))},
        "model": {},
    }[change]
    with monkeypatch.context() as patch:
        patch.setattr(fill, "Shard", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            case.build(tmp_path / "index")
    assert (tmp_path / ".index.building" / "build.json").exists()
    other.build(tmp_path / "index", **options)
    other.build(tmp_path / "whole", **options)
    assert files(tmp_path / "index") == files(tmp_path / "whole")


def test_half_a_state_is_none(case: Case, tmp_path: Path) -> None:
    left = tmp_path / ".index.building"
    left.mkdir()
    (left / "build.json").write_text('{"identity": "')
    (left / "items-000001.safetensors").write_text("half")
    assert len(case.build(tmp_path / "index")) == 12


def _interrupt(*args: object) -> None:
    raise KeyboardInterrupt
