import json
import subprocess
import sys
from pathlib import Path

import pytest

from m3el_fast.data.__main__ import main
from m3el_fast.errors import InputError


def write(folder: Path, name: str, records: list[dict[str, object]]) -> None:
    (folder / name).write_text(json.dumps(records), encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    entity = {"type": "entity", "entity_name": "Marlow", "attr": "inn"}
    first = {**entity, "id": 0, "qid": "Q1", "image_list": ["a.jpg", "b.jpg"]}
    write(tmp_path, "kb_entity.json", [first, {**entity, "id": 1, "qid": "Q2", "image_list": []}])
    (tmp_path / "kb_image").mkdir()
    (tmp_path / "kb_image" / "a.jpg").write_bytes(b"x")
    mention = {"id": "1", "sentence": "There.", "mentions": "Marlow", "entities": "Marlow", "imgPath": ""}
    for split in ("train", "dev", "test"):
        answered = {**mention, "answer": "Q1", "imgPath": "1.jpg"}
        write(tmp_path, f"X_{split}.json", [answered, {**mention, "answer": "nil"}, {**mention, "answer": "Q3"}])
    return tmp_path


def test_check_counts(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(data)])
    split = [
        "3 mentions, 1 nil, 1 with an answer that is not in the KB",
        "1, of which 1 missing; 2 without any",
    ]
    expected = ["entities: 2, 0 with desc", "entity images: 2, of which 1 missing; 1 without any"]
    for name in ("train", "dev", "test"):
        expected += [f"{name}: {split[0]}", f"{name} images: {split[1]}"]
    assert capsys.readouterr().out.splitlines() == expected


def test_check_desc(data: Path) -> None:
    with pytest.raises(InputError, match=r'expected "desc" to be a string'):
        main(["check", str(data), "--entity-text", "desc"])


def test_bad_data_ends_with_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "m3el_fast.data", "check", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stdout == ""
    path = tmp_path / "kb_entity.json"
    assert found.stderr == f"error: {path}: expected a file of the MIMIC layout, got no such file\n"
