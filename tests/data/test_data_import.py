import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from m3el_fast.data.__main__ import main
from m3el_fast.data.importing import import_data
from m3el_fast.data.layout import Entity, Mention, Split, read_kb, read_mentions
from m3el_fast.data.own_records import read_entities
from m3el_fast.data.splitting import split_sentences
from m3el_fast.errors import InputError

SPLITS: tuple[Split, ...] = get_args(Split)


def entity(number: int, **changes: Any) -> dict[str, Any]:
    record = {"id": f"E{number}", "name": f"House {number}", "text": "an inn", **changes}
    return {key: value for key, value in record.items() if value is not ...}


def mention(**changes: Any) -> dict[str, Any]:
    record = {"mention": "House", "sentence": "We slept there.", "answer": "E1", **changes}
    return {key: value for key, value in record.items() if value is not ...}


def jsonl(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records), encoding="utf-8")
    return path


def picture(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or path.name)
    return path


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "entities.jsonl", entity(1), entity(2))
    jsonl(tmp_path / "mentions.jsonl", *(mention(split=split) for split in SPLITS))
    return tmp_path


def run(*options: str) -> None:
    main(["import", "out", "--entities", "entities.jsonl", "--mentions", "mentions.jsonl", *options])


def refusal(*options: str) -> str:
    """The error's message, which leaves nothing behind."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(InputError) as error:
        run(*options)
    assert sorted(Path().rglob("*")) == before
    return str(error.value)


def test_what_is_given_is_what_training_reads(work: Path) -> None:
    for name in ("pics/a.png", "pics/inns/a.png", "pics/inns/b.v2.jpg", "photos/day 1/x.jpg", "photos/x.png"):
        picture(work / name)
    jsonl(
        work / "entities.jsonl",
        entity(1, name=" Tír  Bán ", image="a.png"),
        entity(2, id=64, text="", images=["inns/a.png", "./inns/b.v2.jpg", "a.png"]),
        entity(3, image=None, images=[]),
        entity(4, image=""),
    )
    own = [mention(split=split) for split in SPLITS]
    given = [
        mention(image="day 1/x.jpg", answer=64),
        mention(image="x.png", answer=None, id="m-7", mention=" Old\nHouse", sentence=" Two\nlines "),
        mention(image="./x.png", answer="NIL", id=5),
        mention(image=None, answer="E9", sentence=""),
    ]
    jsonl(work / "mentions.jsonl", *(record | {"split": "dev"} for record in given), *own)
    run("--entity-images", "pics", "--mention-images", "photos")
    out = Path("out")
    kb = read_kb(out, "attr")
    images = [out / "kb_image" / name for name in ("a.png", "inns/a.png", "inns/b.v2.jpg")]
    assert kb.entities == [
        Entity("E1", "Tír Bán", "an inn", None, (images[0],)),
        Entity("64", "House 2", "", None, (images[1], images[2], images[0])),
        Entity("E3", "House 3", "an inn", None, ()),
        Entity("E4", "House 4", "an inn", None, ()),
    ]
    assert [image.read_text() for image in images] == ["a.png", "a.png", "b.v2.jpg"]
    numbered = [out / "mention_image" / name for name in ("0.jpg", "1.jpg")]
    assert read_mentions(out, "dev") == [
        Mention("1", "House", "We slept there.", numbered[0], "64"),
        Mention("m-7", "Old House", " Two\nlines ", numbered[1], None),
        Mention("5", "House", "We slept there.", numbered[1], None),
        Mention("4", "House", "", None, "E9"),
        Mention("6", "House", "We slept there.", None, "E1"),
    ]
    assert [image.read_text() for image in numbered] == ["x.jpg", "x.png"]
    assert sorted(path.name for path in out.iterdir()) == [
        "kb_entity.json", "kb_image", "mention_image", "out_dev.json", "out_test.json", "out_train.json", "qid2id.json",
    ]  # fmt: skip
    assert json.loads((out / "qid2id.json").read_text()) == {"E1": 0, "64": 1, "E3": 2, "E4": 3}
    first, *_, last = json.loads((out / "out_dev.json").read_text())
    assert (first["entities"], last["entities"]) == ("House 2", " Tír  Bán ")


@pytest.mark.parametrize(
    "name", ["100% wool", "AC%2FDC", "%", "%25", "%41%", "50%25 and 50%", "%F0%9F", "a+b", "cut \ud83d", "\U0001f600"]
)
def test_names_are_read_as_they_are_given(work: Path, name: str) -> None:
    """Although readers of the layout unquote them, as parts of URLs."""
    jsonl(work / "entities.jsonl", entity(1, name=name))
    jsonl(work / "mentions.jsonl", *(mention(split=split, mention=name) for split in SPLITS))
    run()
    expected = name.replace("\ud83d", "\ufffd")
    assert read_kb(Path("out"), "attr").entities[0].name == expected
    assert read_mentions(Path("out"), "test")[0].name == expected


def test_byte_order_mark_carriage_returns_and_blank_lines(work: Path) -> None:
    lines = [
        "",
        json.dumps(entity(1)),
        " \t",
        json.dumps(entity(2, name="a\u2028b", text="\u0085"), ensure_ascii=False),
    ]
    (work / "entities.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    run()
    assert [e.qid for e in read_kb(Path("out"), "attr").entities] == ["E1", "E2"]
    (work / "entities.jsonl").write_bytes(("\ufeff" + "\r\n".join([*lines, "", "[]"])).encode())
    Path("out").rename("before")
    assert refusal() == "entities.jsonl, line 6: expected a JSON object, got []"


BAD_ENTITIES = {
    "not json": ("{", "entities.jsonl, line 2: expected a JSON object, got Expecting property name"),
    "no object": ('"E2"', 'entities.jsonl, line 2: expected a JSON object, got "E2"'),
    "no id": (entity(2, id=...), 'line 2: expected "id" to be a string or an integer, got no such field'),
    "id true": (entity(2, id=True), 'line 2 (id true): expected "id" to be a string or an integer, got true'),
    "empty id": (entity(2, id=""), 'line 2 (id ""): expected "id" to be an id without white space around it, got ""'),
    "id with space": (entity(2, id="E2 "), '"id" to be an id without white space around it, got "E2 "'),
    "id nil": (entity(2, id="Nil"), 'expected an "id" other than "nil", which is no entity, got "Nil"'),
    "id twice": (entity(1), 'line 2 (id "E1"): expected each id once, got E1 again (first in line 1)'),
    "same number": (entity(2, id=5), 'line 3 (id "5"): expected each id once, got 5 again (first in line 2)'),
    "no name": (entity(2, name=...), 'line 2 (id "E2"): expected "name" to be a string, got no such field'),
    "blank name": (entity(2, name=" \n"), 'expected a "name" that is not empty, got " \\n"'),
    "no text": (entity(2, text=...), 'expected "text" to be a string, got no such field'),
    "null text": (entity(2, text=None), 'expected "text" to be a string, got null'),
    "unknown": (entity(2, desc="x", url=1), 'no fields but id, name, text, image, images, got "desc", "url"'),
    "image a list": (entity(2, image=["a"]), 'expected "image" to be a string, got ["a"]'),
    "images a string": (entity(2, images="a"), 'expected "images" to be a list of strings, got "a"'),
    "both": (entity(2, image="a", images=["a"]), 'expected "image" or "images", got both'),
    "above": (entity(2, image="../a.jpg"), 'expected a path below the folder of images, from there, got "../a.jpg"'),
    "above later": (entity(2, images=["a/../../b.jpg"]), "expected a path below the folder of images, from there"),
    "absolute": (entity(2, images=["/etc/passwd"]), 'below the folder of images, from there, got "/etc/passwd"'),
    "nul": (entity(2, image="a\0"), 'expected the name of an image file, got "a\\u0000"'),
    "dot": (entity(2, image="."), 'expected the name of an image file, got "."'),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_ENTITIES.values(), ids=BAD_ENTITIES)
def test_a_bad_entity(work: Path, line: Any, message: str) -> None:
    jsonl(work / "entities.jsonl", entity(1), line, entity(5, id="5"))
    assert message in refusal()


BAD_MENTIONS = {
    "not json": ("no", "mentions.jsonl, line 2: expected a JSON object, got Expecting value"),
    "no object": ("3", "mentions.jsonl, line 2: expected a JSON object, got 3"),
    "no mention": (mention(mention=...), 'line 2: expected "mention" to be a string, got no such field'),
    "blank mention": (mention(mention=""), 'line 2: expected a "mention" that is not empty, got ""'),
    "sentence a list": (mention(sentence=["a"]), 'expected "sentence" to be a string, got ["a"]'),
    "no answer": (mention(answer=...), 'expected "answer" to be the id of an entity, or null, got no such field'),
    "empty answer": (mention(answer=""), '"answer" to be an id without white space around it, got ""'),
    "answer with space": (mention(answer=" E1"), '"answer" to be an id without white space around it, got " E1"'),
    "answer a list": (mention(answer=["E1"]), 'expected "answer" to be a string or an integer, got ["E1"]'),
    "id a list": (mention(id=[1]), 'line 2 (id [1]): expected "id" to be a string or an integer, got [1]'),
    "unknown": (mention(Answer="E1"), "no fields but id, mention, sentence, image, answer, split, got \"Answer\""),
    "image outside": (mention(image="../../x"), 'below the folder of images, from there, got "../../x"'),
    "image a number": (mention(image=3), 'expected "image" to be a string, got 3'),
    "split": (mention(split="valid"), 'line 2: expected "split" to be train or dev or test, got "valid"'),
    "split a list": (mention(split=["dev"]), 'expected "split" to be train or dev or test, got ["dev"]'),
    "no split": (mention(), 'mentions.jsonl, line 2: expected "split" in every line or in none, got none here'),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_MENTIONS.values(), ids=BAD_MENTIONS)
def test_a_bad_mention(work: Path, line: Any, message: str) -> None:
    jsonl(work / "mentions.jsonl", mention(split="train"), line)
    assert message in refusal()


def test_a_split_that_not_all_have(work: Path) -> None:
    jsonl(work / "mentions.jsonl", mention(), mention(split="dev"))
    assert refusal() == 'mentions.jsonl, line 2: expected "split" in every line or in none, got dev'


def test_files_that_cannot_be_read(work: Path) -> None:
    for name in ("entities", "mentions"):
        path = work / f"{name}.jsonl"
        kept = path.read_bytes()
        path.write_bytes(kept + b'{"\xff": 1}')
        assert f"{path.name}, line {3 if name == 'entities' else 4}: expected UTF-8 text, got 'utf-8'" in refusal()
        path.unlink()
        assert refusal() == f"{path.name}: expected a JSON Lines file of {name}, got no such file"
        path.mkdir()
        assert refusal() == f"{path.name}: expected a readable file, got Is a directory"
        path.rmdir()
        path.write_bytes(kept)
    jsonl(work / "entities.jsonl")
    assert refusal() == "entities.jsonl: expected at least one entity, got an empty file"


def test_places_that_cannot_be_used(work: Path) -> None:
    for side in ("entity", "mention"):
        assert refusal(f"--{side}-images", "gone") == "gone: expected a folder of images, got no such folder"
        said = refusal(f"--{side}-images", "entities.jsonl")
        assert said == "entities.jsonl: expected a folder of images, got a file"
    Path("out").symlink_to("nowhere")
    assert refusal() == "out: expected a new folder for the data set, got an existing one. Remove it, or name another"
    with pytest.raises(InputError, match=r"expected a new folder in a folder, got .*mentions.jsonl, which is a file"):
        import_data(work / "mentions.jsonl" / "x" / "out", work / "entities.jsonl")


def test_a_place_that_cannot_be_written(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="expected a place where the data set can be written, got File name too long"):
        import_data(Path("x" * 300), work / "entities.jsonl")
    picture(work / "a.jpg")
    jsonl(work / "entities.jsonl", entity(1, image="a.jpg"))
    monkeypatch.setattr(os, "link", no_links(errno.EXDEV))
    monkeypatch.setattr(Path, "write_bytes", no_links(errno.ENOSPC))
    assert refusal() == "out: expected a place where the data set can be written, got No space left on device"


def test_what_a_killed_import_left_is_not_in_the_way(work: Path) -> None:
    """In a container the next one may well have its process id."""
    (work / f".out.{os.getpid()}").mkdir()
    run()
    assert sorted(path.name for path in work.iterdir() if path.is_dir()) == [f".out.{os.getpid()}", "out"]
    (work / "plain").mkdir()
    assert Path("out").stat().st_mode == Path("plain").stat().st_mode


@pytest.mark.parametrize("lacking", SPLITS)
def test_a_split_without_an_answer_in_the_kb(work: Path, lacking: Split) -> None:
    """Training would refuse it later."""
    answers = {split: "E3" if split == lacking else "E1" for split in SPLITS}
    jsonl(work / "mentions.jsonl", *(mention(split=split, answer=answers[split]) for split in SPLITS))
    expected = f"split {lacking}: expected a mention whose answer is the id of an entity, got none of 1. Training needs"
    assert refusal().startswith(expected)
    jsonl(work / "mentions.jsonl", *(mention(split=split) for split in SPLITS if split != lacking))
    assert "got none of 0" in refusal()


def test_a_file_for_each_split(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images are where the file is that names them; two of one name stay apart."""
    options = ["import", "out", "--entities", "entities.jsonl"]
    for split in SPLITS:
        jsonl(work / split / "m.jsonl", mention(sentence=split, image="x.jpg"), mention(split=split))
        picture(work / split / "x.jpg", split)
        options += [f"--{split}", f"{split}/m.jsonl"]
    main(options)
    for number, split in enumerate(SPLITS):
        first, second = read_mentions(Path("out"), split)
        assert (first.id, first.sentence, second.id) == ("1", split, "2")
        assert first.image == Path("out/mention_image") / f"{number}.jpg"
        assert first.image.read_text() == split
    jsonl(work / "dev" / "m.jsonl", mention(split="test"))
    with pytest.raises(InputError, match=r'dev/m.jsonl, line 1: expected "split" to be dev, got "test"'):
        main(["import", "other", *options[2:]])
    capsys.readouterr()
    for wrong in (options[:6], [*options, "--mentions", "mentions.jsonl"], [*options[:4], "--mention-images", "."]):
        with pytest.raises(SystemExit, match="2"):
            main(["import", "other", *wrong[2:]])
        assert "error: " in capsys.readouterr().err
    assert not Path("other").exists()


def test_images_are_hard_links(work: Path) -> None:
    picture(work / "a.jpg")
    (work / "alias.jpg").symlink_to("a.jpg")
    jsonl(work / "entities.jsonl", entity(1, image="a.jpg"), entity(2, image="alias.jpg"))
    run()
    for image in ("out/kb_image/a.jpg", "out/kb_image/alias.jpg"):
        assert not Path(image).is_symlink()
        assert Path(image).samefile("a.jpg")


def no_links(number: int) -> Callable[..., None]:
    def link(source: str, target: str) -> None:
        raise OSError(number, os.strerror(number), source)

    return link


def test_images_are_copied_where_links_are_not_possible(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(work / "pics" / "a.jpg")
    jsonl(work / "entities.jsonl", entity(1, image="pics/a.jpg"))
    monkeypatch.setattr(os, "link", no_links(errno.EXDEV))
    run()
    assert Path("out/kb_image/pics/a.jpg").read_text() == "a.jpg"
    assert not Path("out/kb_image/pics/a.jpg").samefile("pics/a.jpg")


def test_a_name_that_is_there_already_is_never_written_to(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where "A.jpg" is "a.jpg", writing a copy would write into the user's own file."""
    picture(work / "a.jpg")
    jsonl(work / "entities.jsonl", entity(1, image="a.jpg"))
    monkeypatch.setattr(os, "link", no_links(errno.EEXIST))
    run()
    assert not Path("out/kb_image/a.jpg").exists()


def test_an_image_that_cannot_be_copied(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(work / "a.jpg")
    jsonl(work / "entities.jsonl", entity(1, images=["a.jpg", "gone.jpg"]))
    monkeypatch.setattr(os, "link", no_links(errno.EPERM))
    monkeypatch.setattr(Path, "read_bytes", lambda path: no_links(errno.EACCES)(path, path))
    found = import_data(work / "out", work / "entities.jsonl")
    summary = f"1 of 2 images missing and 1 of 2 images unreadable, first: {work / 'a.jpg'}: Permission denied"
    assert found.warnings() == [f"warning: {summary}"]
    assert list((work / "out" / "kb_image").iterdir()) == []


def test_what_it_prints(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What may be a mistake, then what the check says, then what to do next."""
    picture(work / "a.jpg")
    jsonl(work / "entities.jsonl", entity(1, images=["dir", "a.jpg", "b.jpg"]), entity(2))
    (work / "dir").mkdir()
    answers = ["E7", "E1", "e1", "E9", None, "E8"]
    given = [mention(split=split, answer=answer, image="a.jpg") for split in SPLITS for answer in answers]
    jsonl(work / "mentions.jsonl", *given)
    main(["import", "my data", "--entities", "entities.jsonl", "--mentions", "mentions.jsonl"])
    said = capsys.readouterr().out.splitlines()
    places = "E7 in mentions.jsonl, line 1; e1 in mentions.jsonl, line 3; E9 in mentions.jsonl, line 4; ..."
    assert said.pop(0) == "data set written to my data"
    assert said[0] == f"warning: answers that are no entity's id: 12 ({places})"
    problems = "1 of 4 images missing and 1 of 4 images unreadable"
    assert said[1] == f"warning: {problems}, first: dir: not a regular file"
    main(["check", "my data"])
    checked = capsys.readouterr().out.splitlines()
    assert said[2:-2] == checked
    assert checked[:3] == [
        "entities: 2, 0 with desc",
        "entity images: 3, of which 2 missing; 1 without any",
        "train: 6 mentions, 1 nil, 4 with an answer that is not in the KB",
    ]
    assert said[-2:] == [
        "next: python -m m3el_fast.train --config wikimel --data 'my data'",
        "or, without a pretrained CLIP: --config scratch",
    ]


def test_a_kb_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["import", "out", "--entities", "entities.jsonl"])
    assert len(read_kb(Path("out"), "attr")) == 2
    assert capsys.readouterr().out.splitlines() == [
        "data set written to out",
        "entities: 2, 0 with desc",
        "entity images: 0, of which 0 missing; 2 without any",
        "next: python -m m3el_fast.index build CHECKPOINT --kb out --out INDEX",
    ]


def test_a_test_split_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To evaluate a model that is there."""
    jsonl(work / "m.jsonl", mention(), mention(answer=None))
    main(["import", "out", "--entities", "entities.jsonl", "--test", "m.jsonl"])
    assert [one.answer for one in read_mentions(Path("out"), "test")] == ["E1", None]
    assert {path.name for path in Path("out").glob("*_*.json")} == {"kb_entity.json", "out_test.json"}
    assert capsys.readouterr().out.splitlines()[3:] == [
        "test: 2 mentions, 1 nil, 0 with an answer that is not in the KB",
        "test images: 0, of which 0 missing; 2 without any",
        "next: python -m m3el_fast.evaluate CHECKPOINT --data out",
    ]


def test_entities_are_read_one_at_a_time(work: Path) -> None:
    jsonl(work / "entities.jsonl", entity(1), "{")
    entities = read_entities(work / "entities.jsonl", {}, progress=False)
    assert next(entities).id == "E1"
    with pytest.raises(InputError, match="line 2"):
        next(entities)


def test_the_split_keeps_sentences_together(work: Path) -> None:
    sentences = [f"Sentence {i // 3}" + " " * (i % 3) for i in range(3000)]
    drawn = split_sentences(sentences, 0)
    assert [drawn.count(split) for split in SPLITS] == [2100, 300, 600]
    assert all(len(set(drawn[i : i + 3])) == 1 for i in range(0, 3000, 3))
    assert split_sentences(sentences[::-1], 0) == drawn[::-1]
    assert split_sentences(sentences, 1) != drawn
    jsonl(work / "mentions.jsonl", *(mention(sentence=sentence) for sentence in sentences))
    run()
    for split in SPLITS:
        chosen = [i for i, other in enumerate(drawn) if other == split]
        assert [m.id for m in read_mentions(Path("out"), split)] == [str(i + 1) for i in chosen]
    main(["import", "again", "--entities", "entities.jsonl", "--mentions", "mentions.jsonl", "--seed", "1"])
    assert Path("again/again_dev.json").read_bytes() != Path("out/out_dev.json").read_bytes()


def test_the_split_is_the_same_everywhere() -> None:
    drawn = split_sentences([f"Sentence {i}" for i in range(20)], 7)
    assert "".join(split[0] if split != "test" else "T" for split in drawn) == "tdTtttttttTdttTttttT"


@pytest.mark.parametrize(("count", "sizes"), [(0, [0, 0, 0]), (1, [0, 1, 0]), (3, [1, 1, 1]), (11, [6, 2, 3])])
def test_the_split_of_a_few(count: int, sizes: list[int]) -> None:
    drawn = split_sentences([str(i) for i in range(count)], 0)
    assert [drawn.count(split) for split in SPLITS] == sizes


@pytest.mark.parametrize("name", ["WikiMEL", "RichpediaMEL"])
def test_real_data_comes_back(shared: Path, tmp_path: Path, name: str) -> None:
    """Of a release, as JSON Lines: mentions with a name (one has none) and their entities, and all that have images."""
    root = shared / "data" / name
    before = {split: _some(read_mentions(root, split)) for split in SPLITS}
    answers = {m.answer for mentions in before.values() for m in mentions}
    entities = [e for e in read_kb(root, "attr").entities if e.qid in answers or e.images]
    files = {split: jsonl(tmp_path / f"{split}.jsonl", *map(_line, mentions)) for split, mentions in before.items()}
    own = [{"id": e.qid, "name": e.name, "text": e.attr, "images": [i.name for i in e.images]} for e in entities]
    folders = {"entity_images": root / "kb_image", "mention_images": root / "mention_image"}
    there = {side: folder for side, folder in folders.items() if folder.exists()}
    found = import_data(tmp_path / "out", jsonl(tmp_path / "entities.jsonl", *own), files, **there)
    assert found.warnings() == []
    kb = read_kb(tmp_path / "out", "attr")
    assert [_of_entity(e) for e in kb.entities] == [_of_entity(e) for e in entities]
    for split in SPLITS:
        after = read_mentions(tmp_path / "out", split)
        assert [_of_mention(m) for m in after] == [_of_mention(m) for m in before[split]]
    assert found.images.total > 5


def _some(mentions: list[Mention]) -> list[Mention]:
    return [m for i, m in enumerate(mentions) if m.name and (i < 300 or m.image)]


def _line(m: Mention) -> dict[str, Any]:
    image = m.image.name if m.image else None
    return {"mention": m.name, "sentence": m.sentence, "answer": m.answer, "id": m.id, "image": image}


def _of_entity(e: Entity) -> tuple[object, ...]:
    return e.qid, e.name, e.attr, [(image.name, image.read_bytes()) for image in e.images]


def _of_mention(m: Mention) -> tuple[object, ...]:
    return m.id, m.name, m.sentence, m.answer, m.image and m.image.read_bytes()
