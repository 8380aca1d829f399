"""The push command, from its arguments to what is sent, printed and refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from fake_hub import FakeHub
from hub.made import CHECKPOINT, Made, encode, index_files, other
from m3el_fast.hub import main as hub_command
from m3el_fast.hub_card import edited
from m3el_fast.link import main as link_command
from m3el_fast.models import load_model
from trained import failure


@pytest.fixture
def saved(ours: Made, tmp_path: Path) -> Path:
    ours.model.save_pretrained(tmp_path / "model", index=ours.index)
    return tmp_path / "model"


def test_the_push_command(
    ours: Made, saved: Path, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub_command(["push", str(saved), "me/model", "--private", "--license", "mit"])
    assert capsys.readouterr().out == f"{constants.ENDPOINT}/me/model/commit/{1:040x}\n"
    assert hub.private == {"me/model"}
    assert hub.files("me/model").keys() == CHECKPOINT | index_files(ours.index)
    assert b"license: mit" in hub.files("me/model")["README.md"]
    (tmp_path / "mentions.jsonl").write_text('{"mention": "Elm", "sentence": "We saw the inn number 0"}\n')
    link_command(
        ["me/model", "--input", str(tmp_path / "mentions.jsonl"), "--output", str(tmp_path / "links.jsonl"), "-k", "2"]
    )
    assert capsys.readouterr().out.startswith(f"1 mentions linked to 12 entities: {tmp_path / 'links.jsonl'}\n")
    shutil.rmtree(saved / "index")
    hub_command(["push", str(saved), "me/other", "--index", str(ours.index)])
    hub_command(["push", "me/other", "me/copy"])
    assert hub.files("me/copy").keys() == hub.files("me/other").keys() == CHECKPOINT | index_files(ours.index)
    assert hub.private == {"me/model"}


def test_a_dry_run_sends_nothing(ours: Made, saved: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["push", str(saved), "me/model", "--dry-run"]
    hub_command([*arguments, "--license", "mit", "--private"])
    first, *rows, total, card = capsys.readouterr().out.splitlines()
    assert first == f"would go to {constants.ENDPOINT}/me/model, private if it is new:"
    listed = {name: int(size.replace(",", "")) for size, name in (row.split() for row in rows)}
    assert listed.keys() == CHECKPOINT - {".gitattributes"} | index_files(ours.index)
    assert total.split() == [f"{sum(listed.values()):,}", "bytes", "in", str(len(listed)), "files"]
    for name in {"README.md", "metrics.json", "model.safetensors"} | index_files(ours.index):
        assert listed[name] == (saved / name).stat().st_size
    assert card == f"card: {saved / 'README.md'}, written; what you change in it is kept"
    assert b"\nlicense: mit\n" in (saved / "README.md").read_bytes()
    assert b'"me/model"' in (saved / "README.md").read_bytes()
    (saved / "README.md").write_text("# mine\n")
    hub_command(arguments)
    assert capsys.readouterr().out.splitlines()[-1] == f"card: {saved / 'README.md'}, as it was edited"
    assert (saved / "README.md").read_text() == "# mine\n"
    assert hub.asked == []
    hub_command(["push", str(saved), "me/model"])
    assert hub.files("me/model")["README.md"] == b"# mine\n"
    assert {name: len(hub.files("me/model")[name]) for name in listed if name != "README.md"} == {
        name: size for name, size in listed.items() if name != "README.md"
    }


def test_a_dry_run_of_a_hub_name_shows_the_card(saved: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(saved).push_to_hub("me/model")
    before = len(hub.commits["me/model"])
    capsys.readouterr()
    hub_command(["push", "me/model", "me/copy", "--dry-run"])
    card = "---\n" + capsys.readouterr().out.split("\n---\n", 1)[1]
    assert re.search(r"^# copy$", card, re.M) and edited(card.rstrip().encode()) is None
    assert (len(hub.commits["me/model"]), "me/copy" in hub.commits) == (before, False)


COMMANDS: dict[str, tuple[list[str], str]] = {
    "no-checkpoint": (
        ["push", "{tmp}/none", "me/model"],
        "{tmp}/none: expected a checkpoint folder or a Hub name like owner/model, got no such folder",
    ),
    "name": (["push", "{tmp}/none", "a/b/c"], "a/b/c: expected a Hub name like owner/model, got Repo id must be in"),
    "no-index": (
        ["push", "{model}", "me/model", "--index", "{tmp}/none"],
        "{tmp}/none: expected an entity index, a folder with manifest.json, got none",
    ),
    "other-index": (
        ["push", "{model}", "me/model", "--index", "{tmp}/other", "--dry-run"],
        "{tmp}/other: expected an index of this model (",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), COMMANDS.values(), ids=COMMANDS)
def test_the_push_command_refuses_in_one_line(
    arguments: list[str],
    message: str,
    ours: Made,
    saved: Path,
    hub: FakeHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "{tmp}/other" in arguments:
        encode(other(ours.model), ours.data, tmp_path / "other")
    places: dict[str, Any] = {"tmp": tmp_path, "model": saved}
    found = failure(hub_command, [argument.format(**places) for argument in arguments], capsys)
    assert found.startswith(message.format(**places))
    assert hub.asked == []
