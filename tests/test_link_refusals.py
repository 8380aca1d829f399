"""What the link command refuses, with one message and exit status 2, and that the output is then as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from m3el_fast import link as link_module
from m3el_fast.data.layout import read_kb
from m3el_fast.dataset import kb_source, open_images
from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex
from m3el_fast.link import Linker
from m3el_fast.link import main as link
from tiny import tiny_config, tiny_model
from trained import Trained, failure, link_arguments, trained_in, write_mentions


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield from trained_in(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return write_mentions(tmp_path)


# -- mentions --------------------------------------------------------------------------------------------------------

LINE = '{"mention": "Elm", "sentence": "x"}'
BAD_LINES = {
    "no-mention": ('{"sentence": "x"}', ", field mention: expected a string, got null"),
    "no-sentence": ('{"mention": "x"}', ", field sentence: expected a string, got null"),
    "number": ('{"mention": 3, "sentence": "x"}', ", field mention: expected a string, got 3"),
    "image": (
        '{"mention": "x", "sentence": "x", "image": ["a"]}',
        ", field image: expected a path or nothing, got list",
    ),
    "nul": (
        r'{"mention": "x", "sentence": "x", "image": "a\u0000b"}',
        r', field image: expected a path, got "a\u0000b"',
    ),
    "unknown": (
        '{"mention": "x", "sentence": "x", "img": "a", "b": 1}',
        ": expected no fields but mention, sentence, image, id, candidates, answer, split, got b, img",
    ),
    "candidates": (
        '{"mention": "x", "sentence": "x", "candidates": "Q1"}',
        ', field candidates: expected a list of ids, each a string, got "Q1"',
    ),
    "candidate": (
        '{"mention": "x", "sentence": "x", "candidates": ["Q1", 2]}',
        ', field candidates: expected a list of ids, each a string, got ["Q1", 2]',
    ),
    "unknown-candidate": (
        '{"mention": "x", "sentence": "x", "candidates": ["Q1", "Q12"]}',
        ", field candidates: expected ids of entities to link to, got 'Q12'",
    ),
    "a-list": ('["x"]', ': expected an object with "mention", "sentence" and perhaps "image", got list'),
    "cut": ('{"mention": "x"', ": expected a JSON object, got Expecting ',' delimiter: line 1 column 16 (char 15)"),
    "text": ("Elm", ": expected a JSON object, got Expecting value: line 1 column 1 (char 0)"),
    "deep": ("[" * 100_000, ": expected a JSON object, got maximum recursion depth exceeded"),
    "huge": ('{"mention": ' + "9" * 5000 + "}", ": expected a JSON object, got Exceeds the limit"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line(line: str, message: str, trained: Trained, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "mentions.jsonl").write_text(f"{LINE}\n\n{line}\n{LINE}\n")
    (work / "links.jsonl").write_text("old")
    found = failure(link, link_arguments(trained, work), capsys)
    assert found.startswith(f"{work / 'mentions.jsonl'}, line 3{message}")
    assert (work / "links.jsonl").read_text() == "old"
    (work / "links.jsonl").unlink()
    failure(link, link_arguments(trained, work), capsys)
    assert not (work / "links.jsonl").exists()


def test_a_bad_record_in_python(trained: Trained) -> None:
    linker = Linker.from_pretrained(trained.checkpoint)
    good = {"mention": "Elm", "sentence": "x"}
    with pytest.raises(InputError, match=r'mentions, record 2: expected an object with "mention".*, got str'):
        linker.link([good, "Elm"])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"mentions, record 1, field sentence: expected a string, got 3"):
        linker.link([good | {"sentence": 3}])
    with pytest.raises(InputError, match=r"mentions, record 1: expected no fields but .*, got 5"):
        linker.link([good | {5: "x"}])  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"k: expected at least 1, got 0"):
        linker.link([good], k=0)
    with pytest.raises(InputError, match=r"mentions, record 2, field candidates: expected ids .*, got 'Q12'"):
        linker.link([good, good | {"candidates": ["Q12"]}])
    with pytest.raises(InputError, match=r"mentions, record 1, field candidates: expected a list of ids.*, got 3"):
        linker.link([good], candidates=[3])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"candidates: expected one list of ids for each of 1 mentions, got 2"):
        linker.link([good], candidates=[["Q1"], ["Q2"]])
    with pytest.raises(InputError, match=r"candidates: expected at least 10 \(k\), got 9"):
        linker.link([good], candidates=9)
    with pytest.raises(InputError, match=r"candidates: expected ids for each mention, or a whole number, got 9.5"):
        linker.link([good], candidates=9.5)  # type: ignore[arg-type]


def test_a_kb_and_an_index(trained: Trained, work: Path) -> None:
    linker = Linker.from_pretrained(trained.checkpoint)
    with pytest.raises(InputError, match="linker: expected either a KB or an index, got both"):
        Linker.from_pretrained(trained.checkpoint, trained.data, index=work)
    with pytest.raises(InputError, match="linker: expected either a KB or an index, got both"):
        Linker(linker.model, read_kb(trained.data, "attr"), index=linker.index)
    with pytest.raises(InputError, match="linker: expected either a KB or an index, got neither"):
        Linker(linker.model)


def test_an_index_that_cannot_be_used(trained: Trained, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = link_arguments(trained, work, "--index", str(work / "none"))
    message = failure(link, arguments, capsys)
    assert message.startswith(f"{work / 'none'}: expected an entity index")
    linker = Linker.from_pretrained(trained.checkpoint)
    other = tiny_model(tiny_config(trained.data), seed=3)
    kb = read_kb(trained.data, "attr")
    cache = open_images([path for e in kb.entities for path in e.images], other.encoder, True, False)
    source = kb_source(kb, other.config.data, other.encoder, cache)
    EntityIndex.build(other, source, work / "other", progress=False)
    message = failure(link, link_arguments(trained, work, "--index", str(work / "other")), capsys)
    assert "model" in message
    with pytest.raises(InputError, match="model"):
        Linker(linker.model, index=EntityIndex.open(work / "other"))
    assert not (work / "links.jsonl").exists()


def test_an_input_file_that_cannot_be_read(trained: Trained, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = work / "mentions.jsonl"
    path.write_bytes(b'{"mention": "\xff"}')
    message = failure(link, link_arguments(trained, work), capsys)
    assert message.startswith(f"{path}, line 1: expected UTF-8 text, got 'utf-8' codec can't decode byte 0xff")
    path.unlink()
    message = failure(link, link_arguments(trained, work), capsys)
    assert message == f"{path}: expected a JSON Lines file of mentions, got no such file"
    path.mkdir()
    message = failure(link, link_arguments(trained, work), capsys)
    assert message == f"{path}: expected a readable file, got Is a directory"


def test_an_output_that_cannot_be_written(trained: Trained, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "links.jsonl").mkdir()
    message = failure(link, link_arguments(trained, work), capsys)
    assert message == f"{work / 'links.jsonl'}: expected a file to write, got a folder"


@pytest.mark.parametrize("k", ["0", "-2"])
def test_k(k: str, trained: Trained, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(link, link_arguments(trained, work, "-k", k), capsys) == f"-k: expected at least 1, got {k}"


@pytest.mark.parametrize("candidates", ["9", "0", "-2"])
def test_fewer_candidates_than_links(
    candidates: str, trained: Trained, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = failure(link, link_arguments(trained, work, "--candidates", candidates), capsys)
    assert message == f"--candidates: expected at least 10 (-k), got {candidates}"


# -- KB and checkpoint ------------------------------------------------------------------------------------------------


def _replace_kb(folder: Path, text: str) -> None:
    (folder / "kb_entity.json").write_text(text)


KBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda kb: _replace_kb(kb, (kb / "kb_entity.json").read_text()[:500]),
        "/kb_entity.json: expected valid JSON, got ",
    ),
    "empty": (lambda kb: _replace_kb(kb, "[]"), "/kb_entity.json: expected at least one entity, got an empty list"),
    "object": (lambda kb: _replace_kb(kb, "{}"), "/kb_entity.json: expected a list of JSON objects, got {}"),
    "missing": (
        lambda kb: (kb / "kb_entity.json").unlink(),
        "/kb_entity.json: expected a file of the MIMIC layout, got no such file",
    ),
    "gone": (
        lambda kb: shutil.rmtree(kb),
        ": expected a folder with a data set in the MIMIC layout, got no such folder",
    ),
}


@pytest.mark.parametrize(("damage", "message"), KBS.values(), ids=KBS)
def test_a_kb_that_cannot_be_used(
    damage: Callable[[Path], object],
    message: str,
    trained: Trained,
    work: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kb = trained.copy_data(work / "kb")
    damage(kb)
    found = failure(link, link_arguments(trained, work, "--kb", str(kb)), capsys)
    assert found.startswith(f"{kb}{message}")
    assert not (work / "links.jsonl").exists()


def _weights(checkpoint: Path) -> None:
    save_file({"other": torch.ones(2)}, checkpoint / "model.safetensors")


def _other_model(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    tiny_model(tiny_config(Path("unused"), {"type": "mimic"})).save_pretrained(checkpoint)
    save_file(weights, checkpoint / "model.safetensors")


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "other-weights": (_weights, "/model.safetensors: expected the weights of this model, got "),
    "other-model": (_other_model, "/model.safetensors: expected the weights of this model, got "),
    "truncated": (lambda c: os.truncate(c / "model.safetensors", 1000), "/model.safetensors: expected a safetensors"),
    "no-weights": (lambda c: (c / "model.safetensors").unlink(), ": expected a checkpoint folder with config.yaml and"),
    "no-towers": (lambda c: (c / "towers.json").unlink(), "/towers.json: expected the towers' configurations, got "),
    "config": (
        lambda c: (c / "config.yaml").write_text("model: {type: blink}"),
        "/config.yaml, key model.type: expected m3el or mimic, got blink",
    ),
    "gone": (lambda c: shutil.rmtree(c), ": expected a checkpoint folder or a Hub name like owner/model, got no such"),
}


@pytest.mark.parametrize(("damage", "message"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_used(
    damage: Callable[[Path], object],
    message: str,
    trained: Trained,
    work: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = Path(shutil.copytree(trained.checkpoint, work / "checkpoint"))
    damage(checkpoint)
    (work / "links.jsonl").write_text("old")
    found = failure(link, [str(checkpoint), *link_arguments(trained, work)[1:]], capsys)
    assert found.startswith(f"{checkpoint}{message}")
    assert (work / "links.jsonl").read_text() == "old"


# -- nothing half-written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["os.replace", "write"])
@pytest.mark.parametrize("old", [None, "old"], ids=["new-file", "old-file"])
def test_a_write_that_fails(
    call: str, old: str | None, trained: Trained, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = work / "links.jsonl"
    if old is not None:
        path.write_text(old)
    before = {p.name for p in work.iterdir()}
    written = iter(range(100))

    def dumps(value: object, **kwargs: Any) -> str:
        if next(written) == 3:
            raise OSError("no space left on device")
        return "{}"

    def replace(source: Path, target: Path) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(link_module.json, "dumps", dumps)
        else:
            patch.setattr("m3el_fast.files.os.replace", replace)
        with pytest.raises(OSError, match="no space left"):
            link(link_arguments(trained, work))
    assert {p.name for p in work.iterdir()} == before
    assert not path.exists() if old is None else path.read_text() == old
