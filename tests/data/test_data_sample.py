import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3el_fast.data import sample as module
from m3el_fast.data.layout import KnowledgeBase, Mention, read_kb, read_mentions
from m3el_fast.data.sample import write_sample
from m3el_fast.data.sample_pictures import looks
from m3el_fast.errors import InputError


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole set, with pictures of one pixel, which take no time to draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw", lambda look, rng: Image.new("RGB", (1, 1)))
        return write_sample(tmp_path_factory.mktemp("sample") / "data")


@pytest.fixture(scope="module")
def kb(sample: Path) -> KnowledgeBase:
    return read_kb(sample, "desc")


@pytest.fixture(scope="module")
def mentions(sample: Path) -> dict[str, list[Mention]]:
    return {split: read_mentions(sample, split) for split in ("train", "dev", "test")}


def test_same_bytes_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer names, 144 houses."""
    monkeypatch.setattr(module, "NAMES", 16)
    here, there = write_sample(tmp_path / "here"), tmp_path / "there"
    code = (
        "import sys\n"
        "from m3el_fast.data import sample\n"
        "from m3el_fast.data.__main__ import main\n"
        "sample.NAMES = 16\n"
        "main(['sample', sys.argv[1]])\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(there)], env=environment, check=True, capture_output=True)
    names = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert len(names) > 700
    assert names == sorted(path.relative_to(there) for path in there.rglob("*") if path.is_file())
    assert [name for name in names if (here / name).read_bytes() != (there / name).read_bytes()] == []


def test_sizes(kb: KnowledgeBase, mentions: dict[str, list[Mention]]) -> None:
    assert len(kb) == 1503
    assert {split: len(found) for split, found in mentions.items()} == {"train": 4250, "dev": 608, "test": 1214}


def test_images(kb: KnowledgeBase, mentions: dict[str, list[Mention]]) -> None:
    images = [image for entity in kb.entities for image in entity.images]
    images += [mention.image for found in mentions.values() for mention in found if mention.image]
    assert len(images) > 7000
    assert all(image.is_file() for image in images)
    assert set(Counter(len(entity.images) for entity in kb.entities)) == {0, 1, 2, 3}
    assert 0 < sum(mention.image is None for mention in mentions["test"]) < 0.04 * len(mentions["test"])


def test_name_trade_and_isle_leave_three_houses(kb: KnowledgeBase) -> None:
    names, kinds = Counter(e.name for e in kb.entities), Counter((e.name, *e.attr.split(".")[:2]) for e in kb.entities)
    assert set(names.values()) == {9}
    assert set(kinds.values()) == {3}


def test_answers(kb: KnowledgeBase, mentions: dict[str, list[Mention]]) -> None:
    for found in mentions.values():
        assert all(m.answer is None or m.answer in kb.row for m in found)
        assert 0 < sum(m.answer is None for m in found) < 0.03 * len(found)
    answered = defaultdict(int)
    for mention in (m for found in mentions.values() for m in found if m.answer):
        answered[mention.answer] += 1
        name = kb.entities[kb.row[mention.answer]].name
        assert name in mention.name
        assert name in mention.sentence
    assert set(answered.values()) == {4}
    assert len(answered) == 1503


def test_signs_tell_those_three_apart() -> None:
    houses = module._houses(["Marlow", "Penwick"], np.random.default_rng(0))
    boards = defaultdict(set)
    for house in houses:
        boards[house.name, house.trade].add(house.look.board)
    assert len(houses) == 18
    assert [len(found) for found in boards.values()] == [3] * 6
    assert len(looks()) == 180


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError) as error:
        write_sample(tmp_path / "mine")
    expected = f"{tmp_path / 'mine'}: expected a new folder for the sample set, got an existing one"
    assert str(error.value).startswith(expected)


def test_leaves_nothing_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "_houses", fail)
    with pytest.raises(InputError, match="expected a place where the sample set can be written, got disk full"):
        write_sample(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
