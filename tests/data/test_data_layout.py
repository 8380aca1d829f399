import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m3el_fast.data.layout import Entity, Mention, entity_text, mention_text, read_kb, read_mentions
from m3el_fast.errors import InputError


def kb_record(number: int, **changes: Any) -> dict[str, Any]:
    record = {
        "id": number,
        "type": "entity",
        "qid": f"Q{number}",
        "entity_name": f"House {number}",
        "attr": "Trade: inn.",
        "image_list": [f"{number}.jpg"],
    }
    record.update(changes)
    return {key: value for key, value in record.items() if value is not ...}


def mention_record(**changes: Any) -> dict[str, Any]:
    record = {"id": "7-1", "sentence": "We slept there.", "imgPath": "https://x.org/a/7.b.png", "mentions": "House",
              "entities": "House 1", "answer": "Q1"}  # fmt: skip
    record.update(changes)
    return {key: value for key, value in record.items() if value is not ...}


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def write_kb(folder: Path, *records: Any) -> Path:
    return write(folder / "kb_entity.json", list(records))


def write_mentions(folder: Path, *records: Any) -> Path:
    return write(folder / "SAMPLE_test.json", list(records))


def test_reads_a_kb(tmp_path: Path) -> None:
    write_kb(tmp_path, kb_record(4, desc="An inn.", image_list=["a b.jpg", "c.png"]), kb_record(2, image_list=[]))
    write(tmp_path / "qid2id.json", {"Q2": 2, "Q4": 4, "nil": -1})
    kb = read_kb(tmp_path, "attr")
    assert kb.root == tmp_path
    assert len(kb) == 2
    assert kb.row == {"Q4": 0, "Q2": 1}
    images = (tmp_path / "kb_image" / "a b.jpg", tmp_path / "kb_image" / "c.png")
    assert kb.entities[0] == Entity("Q4", "House 4", "Trade: inn.", "An inn.", images)
    assert kb.entities[1].desc is None
    assert kb.entities[1].images == ()
    assert entity_text(kb.entities[0], "attr") == "House 4 [SEP] Trade: inn."
    assert entity_text(kb.entities[0], "desc") == "House 4 [SEP] An inn."
    with pytest.raises(ValueError, match="Q2 has no desc"):
        entity_text(kb.entities[1], "desc")


def test_reads_a_mention(tmp_path: Path) -> None:
    write_mentions(tmp_path, mention_record())
    (mention,) = read_mentions(tmp_path, "test")
    assert mention == Mention("7-1", "House", "We slept there.", tmp_path / "mention_images" / "7.jpg", "Q1")
    assert mention_text(mention) == "House [SEP] We slept there."


@pytest.mark.parametrize("prefix", ["WIKIMEL", "RichpediaMEL", "WikiDiverse", "wiki_diverse", "Any thing"])
def test_finds_a_split_whatever_its_prefix(tmp_path: Path, prefix: str) -> None:
    write(tmp_path / f"{prefix}_dev.json", [mention_record()])
    write(tmp_path / f"._{prefix}_dev.json", "left by an archiver")
    assert len(read_mentions(tmp_path, "dev")) == 1


@pytest.mark.parametrize("folder", ["mention_image", "mention_images"])
def test_finds_either_mention_image_folder(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    write_mentions(tmp_path, mention_record(imgPath="12.JPEG"))
    assert read_mentions(tmp_path, "test")[0].image == tmp_path / folder / "12.jpg"


def test_mention_image_is_the_base_name_wherever_the_path_leads(tmp_path: Path) -> None:
    write_mentions(tmp_path, mention_record(imgPath="../../etc/12.tar.gz"), mention_record(imgPath=""))
    images = [mention.image for mention in read_mentions(tmp_path, "test")]
    assert images == [tmp_path / "mention_images" / "12.jpg", None]


@pytest.mark.parametrize(
    ("raw", "name"),
    [("T%C3%ADr%20B%C3%A1n", "Tír Bán"), ("Old\n  House\t", "Old House"), ("A%0AB", "A B"),
     ("100% wool", "100% wool"), ("cut \ud83d", "cut \ufffd"), ("\U0001f600", "\U0001f600")],
    ids=["quoted", "newline", "quoted newline", "bare percent", "half a character", "emoji"],
)  # fmt: skip
def test_names_are_unquoted_and_on_one_line(tmp_path: Path, raw: str, name: str) -> None:
    write_mentions(tmp_path, mention_record(mentions=raw))
    write_kb(tmp_path, kb_record(1, entity_name=raw))
    assert read_mentions(tmp_path, "test")[0].name == name
    assert read_kb(tmp_path, "attr").entities[0].name == name


@pytest.mark.parametrize(("answer", "read"), [("nil", None), ("NIL", None), (" Nil ", None), ("Q5", "Q5")])
def test_nil_answers(tmp_path: Path, answer: str, read: str | None) -> None:
    write_mentions(tmp_path, mention_record(answer=answer))
    assert read_mentions(tmp_path, "test")[0].answer == read


def test_numeric_mention_id(tmp_path: Path) -> None:
    write_mentions(tmp_path, mention_record(id=12))
    assert read_mentions(tmp_path, "test")[0].id == "12"


def test_file_with_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "kb_entity.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([kb_record(1)]).encode())
    assert len(read_kb(tmp_path, "attr")) == 1


def fails(read: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        read()
    return str(error.value)


BAD_ENTITIES = {
    "no qid": (kb_record(2, qid=...), ' (id 2): expected "qid" to be a string, got no such field'),
    "numeric qid": (kb_record(2, qid=5), ' (qid 5): expected "qid" to be a string, got 5'),
    "empty qid": (kb_record(2, qid=""), ' (qid ""): expected a "qid" that is not empty, got ""'),
    "qid twice": (kb_record(2, qid="Q1"), ' (qid "Q1"): expected each qid once, got Q1 again (first in record 1)'),
    "id twice": (kb_record(1, qid="Q2"), ' (qid "Q2"): expected each id once, got 1 again (first in record 1)'),
    "id a string": (kb_record(2, id="2"), ' (qid "Q2"): expected "id" to be an integer, got "2"'),
    "id true": (kb_record(2, id=True), ' (qid "Q2"): expected "id" to be an integer, got true'),
    "no name": (kb_record(2, entity_name=...), ' (qid "Q2"): expected "entity_name" to be a string, got no such field'),
    "null name": (kb_record(2, entity_name=None), ' (qid "Q2"): expected "entity_name" to be a string, got null'),
    "blank name": (kb_record(2, entity_name="%20 "), 'expected an "entity_name" that is not empty, got "%20 "'),
    "no attr": (kb_record(2, attr=...), ' (qid "Q2"): expected "attr" to be a string, got no such field'),
    "desc a list": (kb_record(2, desc=[]), ' (qid "Q2"): expected "desc" to be a string, got []'),
    "images a string": (kb_record(2, image_list="a.jpg"), 'expected "image_list" to be a list of strings, got "a.jpg"'),
    "image a number": (kb_record(2, image_list=["a", 3]), '"image_list" to be a list of strings, got ["a", 3]'),
    "no images": (kb_record(2, image_list=...), 'expected "image_list" to be a list of strings, got no such field'),
    "image unnamed": (kb_record(2, image_list=[""]), 'expected the name of an image file, got ""'),
    "image with NUL": (kb_record(2, image_list=["a\0"]), 'expected the name of an image file, got "a\\u0000"'),
    "image above": (kb_record(2, image_list=["../kb_entity.json"]),
                    'expected an image inside kb_image/, got "../kb_entity.json", which leads out of it'),
    "image above later": (kb_record(2, image_list=["a/../../x.jpg"]), "expected an image inside kb_image/"),
    "image dots": (kb_record(2, image_list=[".."]), "expected an image inside kb_image/"),
    "image absolute": (kb_record(2, image_list=["/etc/passwd"]), 'inside kb_image/, got "/etc/passwd", which leads'),
    "not an object": (["Q2"], ': expected a JSON object, got ["Q2"]'),
}  # fmt: skip


@pytest.mark.parametrize(("record", "message"), BAD_ENTITIES.values(), ids=BAD_ENTITIES)
def test_bad_entity(tmp_path: Path, record: Any, message: str) -> None:
    path = write_kb(tmp_path, kb_record(1), record)
    said = fails(lambda: read_kb(tmp_path, "attr"))
    assert said.startswith(f"{path}, record 2")
    assert message in said


BAD_MENTIONS = {
    "no id": (mention_record(id=...), ', record 2: expected "id" to be a string or an integer, got no such field'),
    "id a list": (mention_record(id=[1]), ', record 2 (id [1]): expected "id" to be a string or an integer, got [1]'),
    "no mention": (mention_record(mentions=...), ' (id "7-1"): expected "mentions" to be a string, got no such field'),
    "mention a list": (mention_record(mentions=["a"]), 'expected "mentions" to be a string, got ["a"]'),
    "null sentence": (mention_record(sentence=None), 'expected "sentence" to be a string, got null'),
    "no image path": (mention_record(imgPath=...), 'expected "imgPath" to be a string, got no such field'),
    "image path is a folder": (mention_record(imgPath="a/b/"), 'expected "imgPath" to end in a file name, got "a/b/"'),
    "image path is dots": (mention_record(imgPath="../.."), 'expected "imgPath" to end in a file name, got "../.."'),
    "answer a number": (mention_record(answer=1), 'expected "answer" to be a string, got 1'),
    "empty answer": (mention_record(answer=" "), 'expected "answer" to be a qid or "nil", got " "'),
    "not an object": (3, ", record 2: expected a JSON object, got 3"),
}


@pytest.mark.parametrize(("record", "message"), BAD_MENTIONS.values(), ids=BAD_MENTIONS)
def test_bad_mention(tmp_path: Path, record: Any, message: str) -> None:
    path = write_mentions(tmp_path, mention_record(), record)
    said = fails(lambda: read_mentions(tmp_path, "test"))
    assert said.startswith(f"{path}, record 2")
    assert message in said


def test_no_desc(tmp_path: Path) -> None:
    path = write_kb(tmp_path, kb_record(1, desc="here"), kb_record(2))
    said = fails(lambda: read_kb(tmp_path, "desc"))
    message = 'expected "desc" to be a string, got no such field. Set entity_text to "attr"'
    assert said.startswith(f'{path}, record 2 (qid "Q2"): {message}')


def test_image_linked_from_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"x")
    for folder in ("kb_image", "mention_image"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").symlink_to("../secret.jpg")
        (tmp_path / folder / "loop.jpg").symlink_to("loop.jpg")
    kb, mentions = write_kb(tmp_path, kb_record(1)), write_mentions(tmp_path, mention_record(imgPath="loop.png"))
    said = fails(lambda: read_kb(tmp_path, "attr"))
    assert said.startswith(f'{kb}, record 1 (qid "Q1"): expected an image inside kb_image/, got "1.jpg"')
    said = fails(lambda: read_mentions(tmp_path, "test"))
    assert said.startswith(f'{mentions}, record 1 (id "7-1"): expected an image inside mention_image/, got "loop.jpg"')


def test_links_that_stay_inside(tmp_path: Path) -> None:
    store = tmp_path / "other disk"
    (store / "sub").mkdir(parents=True)
    (store / "alias.jpg").symlink_to("sub/real.jpg")
    (tmp_path / "kb_image").symlink_to(store)
    write_kb(tmp_path, kb_record(1, image_list=["alias.jpg", "sub/real.jpg"]))
    images = read_kb(tmp_path, "attr").entities[0].images
    assert images == (tmp_path / "kb_image" / "alias.jpg", tmp_path / "kb_image" / "sub/real.jpg")


BAD_FILES = {
    "empty file": ("", "expected valid JSON, got Expecting value: line 1 column 1"),
    "truncated": (json.dumps([kb_record(1)])[:-20], "expected valid JSON, got Unterminated string starting at"),
    "too deep": ("[" * 200_000, "expected valid JSON, got maximum recursion depth"),
    "object": ("{}", "expected a list of JSON objects, got {}"),
    "string": ('"' + "x" * 100 + '"', 'expected a list of JSON objects, got "' + "x" * 59 + "..."),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file(tmp_path: Path, text: str, message: str) -> None:
    for path, read in (
        (tmp_path / "kb_entity.json", lambda: read_kb(tmp_path, "attr")),
        (tmp_path / "X_train.json", lambda: read_mentions(tmp_path, "train")),
    ):
        said = fails(lambda path=path, read=read: read() if write(path, text) else None)  # type: ignore[misc]
        assert said.startswith(f"{path}: {message}")


def test_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "kb_entity.json").write_bytes(b'["\xff\xff"]')
    said = fails(lambda: read_kb(tmp_path, "attr"))
    assert "kb_entity.json: expected valid JSON, got 'utf-8' codec can't decode" in said


def test_empty_kb(tmp_path: Path) -> None:
    path = write_kb(tmp_path)
    assert fails(lambda: read_kb(tmp_path, "attr")) == f"{path}: expected at least one entity, got an empty list"


def test_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "kb_entity.json"
    assert fails(lambda: read_kb(tmp_path, "attr")) == f"{path}: expected a file of the MIMIC layout, got no such file"
    assert fails(lambda: read_mentions(tmp_path, "dev")) == f"{tmp_path}: expected one file *_dev.json, got none"
    path.mkdir()
    assert fails(lambda: read_kb(tmp_path, "attr")) == f"{path}: expected a readable file, got Is a directory"
    for bad, got in ((tmp_path / "nowhere", "no such folder"), (write(tmp_path / "a", "x"), "a file")):
        expected = f"{bad}: expected a folder with a data set in the MIMIC layout, got {got}"
        assert fails(lambda bad=bad: read_kb(bad, "attr")) == expected  # type: ignore[misc]
        assert fails(lambda bad=bad: read_mentions(bad, "dev")) == expected  # type: ignore[misc]


def test_two_files_for_one_split(tmp_path: Path) -> None:
    for name in ("A_test.json", "B_test.json"):
        write(tmp_path / name, [mention_record()])
    said = fails(lambda: read_mentions(tmp_path, "test"))
    assert said == f"{tmp_path}: expected one file *_test.json, got A_test.json, B_test.json"


def test_image_folder_that_is_a_file(tmp_path: Path) -> None:
    write_kb(tmp_path, kb_record(1))
    path = write(tmp_path / "kb_image", "x")
    assert fails(lambda: read_kb(tmp_path, "attr")) == f"{path}: expected a folder of images, got a file"


@pytest.mark.parametrize(
    ("table", "message"),
    [({"Q1": 1, "Q2": 1}, ", key Q2: expected 2, its id in kb_entity.json, got 1. It is not needed"),
     ({"Q1": 1}, ", key Q2: expected 2, its id in kb_entity.json, got no such field"),
     ([1], ": expected one JSON object, got [1]"),
     ("{", ": expected valid JSON")],
    ids=["other id", "missing qid", "a list", "truncated"],
)  # fmt: skip
def test_table_that_contradicts_the_kb(tmp_path: Path, table: Any, message: str) -> None:
    write_kb(tmp_path, kb_record(1), kb_record(2))
    path = write(tmp_path / "qid2id.json", table)
    assert fails(lambda: read_kb(tmp_path, "attr")).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("name", "text", "entities", "mentions"),
    [("WikiMEL", "attr", 18_880, {"train": 18_092, "dev": 2_585, "test": 5_169}),
     ("RichpediaMEL", "desc", 17_805, {"train": 12_463, "dev": 1_781, "test": 3_561})],
    ids=["WikiMEL", "RichpediaMEL"],
)  # fmt: skip
def test_real_data(shared: Path, name: str, text: Any, entities: int, mentions: dict[Any, int]) -> None:
    kb = read_kb(shared / "data" / name, text)
    assert len(kb) == entities
    for split, count in mentions.items():
        found = read_mentions(kb.root, split)
        assert len(found) == count
        assert all(mention.answer in kb.row for mention in found)
        assert not any("\n" in mention.name for mention in found)
        assert all(mention.image.is_file() for mention in found if mention.image)
    assert all(image.is_file() for entity in kb.entities for image in entity.images)
