"""``m3el index``: what a user types, from a checkpoint to an index that changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3el_fast.index import EntityIndex
from m3el_fast.index.__main__ import main
from trained import Trained, failure, trained_in


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield from trained_in(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def built(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "index"
    main(["build", trained.checkpoint, "--kb", str(trained.data), "--out", str(out)])
    return out


@pytest.fixture
def index(built: Path, tmp_path: Path) -> str:
    return str(shutil.copytree(built, tmp_path / "index"))


def test_build_says_what_it_made(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "index"
    main(["build", trained.checkpoint, "--kb", str(trained.data), "--out", str(out), "--dtype", "fp32"])
    said = capsys.readouterr().out
    index = EntityIndex.open(out)
    assert list(index.ids) == [f"Q{i}" for i in range(12)]
    assert index.names[0] == "Elm inn"
    assert index.manifest.layout.dtype == "fp32"
    assert "entities  12, and 0 removed" in said
    assert "images    5 distinct, 0.42 an entity" in said
    assert "m3el, fingerprint" in said
    assert "bytes an entity" in said
    assert "text.query F32 [12, 8]" in said


def test_info_and_verify(index: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", index])
    assert f"{index}, version 1 (format 1)" in capsys.readouterr().out
    main(["verify", index])
    assert "all 2 files are as they were written" in capsys.readouterr().out
    path = Path(index) / "items-000001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "items-000001.safetensors is damaged" in failure(main, ["verify", index], capsys)


def test_remove_and_add(trained: Trained, index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ids.txt").write_text("Q3\r\n\nQ4\n", encoding="utf-8-sig")
    main(["remove", index, "Q1", "--ids", str(tmp_path / "ids.txt")])
    assert "entities  9, and 3 removed" in capsys.readouterr().out
    main(["add", index, trained.checkpoint, "--kb", str(trained.data), "--ids", str(tmp_path / "ids.txt")])
    assert "entities  11, and 3 removed" in capsys.readouterr().out
    after = EntityIndex.open(index)
    assert list(after.ids)[12:] == ["Q3", "Q4"]
    assert after.names[12] == "Elm inn"
    assert after.visual_rows == 5


def test_add_takes_a_whole_kb(trained: Trained, index: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["add", index, trained.checkpoint, "--kb", str(trained.data)]
    assert "ids that are not in the index (12 are)" in failure(main, arguments, capsys)
    main(["remove", index, *(f"Q{i}" for i in range(12))])
    main(arguments)
    assert len(EntityIndex.open(index)) == 12


def test_refuses_what_it_cannot_use(
    trained: Trained, index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids.txt").write_text("Q3\nQ99\n")
    kb = ["--kb", str(trained.data)]
    add = ["add", index, trained.checkpoint, *kb, "--ids"]
    for arguments, message in (
        (["build", trained.checkpoint, *kb, "--out", index], "a new folder, got an index"),
        (["build", str(tmp_path), *kb, "--out", str(tmp_path / "new")], "a checkpoint folder"),
        (["build", trained.checkpoint, "--kb", str(tmp_path), "--out", str(tmp_path / "new")], "kb_entity.json"),
        ([*add, str(tmp_path / "ids.txt")], "entities with the ids given (1 are not there), got 'Q99'"),
        ([*add, str(tmp_path / "none.txt")], "a readable file of ids, got No such file"),
        (["remove", index], "at least one entity"),
        (["remove", index, "Q99"], "got 'Q99'"),
        (["info", str(tmp_path)], "an entity index"),
        (["verify", str(tmp_path / "none")], "an entity index"),
    ):
        assert message in failure(main, arguments, capsys)
    (tmp_path / "ids.txt").write_bytes(b"\xff")
    assert "UTF-8 text" in failure(main, ["remove", index, "--ids", str(tmp_path / "ids.txt")], capsys)
    assert EntityIndex.open(index).manifest.version == 1
    assert not (tmp_path / "new").exists()


def test_images_that_cannot_be_used(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = trained.copy_data(tmp_path / "data")
    (data / "kb_image" / "red.jpg").unlink()
    arguments = ["build", trained.checkpoint, "--kb", str(data), "--out", str(tmp_path / "index")]
    assert "red.jpg" in failure(main, [*arguments, "--strict-images"], capsys)
    main(arguments)
    assert "red.jpg: no such file" in capsys.readouterr().out
    assert EntityIndex.open(tmp_path / "index").visual_rows == 4
