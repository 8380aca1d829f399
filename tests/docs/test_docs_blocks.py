"""Every code block of the documentation and the README runs, or is named in a table that says why it does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.blocks import PAGES, ROOT, Block, blocks, links, shell_lines
from docs.exempt import TABLE
from docs.runner import Runner, alike, shown_in, values_in
from docs.workplace import make_workplace
from fake_hub import running_hub

LANGUAGES = {"python", "sh", "json", "yaml", "text", "diff"}
SLOW = {"how-to/own-data.md"}  # trains with a preset, seven seconds
WITH_BLOCKS = [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES if blocks(page)]
NEEDS = {
    "how-to/rerankers.md": "rerankers",
    "how-to/sentence-transformers.md": "sentence_transformers",
    "how-to/spacy.md": "spacy",
}


@contextlib.contextmanager
def surroundings(page: str, folder: Path) -> Iterator[None]:
    """The Hugging Face Hub, for the page that pushes to it."""
    with running_hub(folder.parent / "hub") if page == "how-to/hugging-face-hub.md" else contextlib.nullcontext():
        yield


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_a_page_runs(page: str, model_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], reason=f"{NEEDS[page]} is not installed")
    folder = tmp_path / "page"
    folder.mkdir()
    make_workplace(page, model_home, folder)
    monkeypatch.chdir(folder)
    runner = Runner()
    with surroundings(page, folder), contextlib.closing(runner):
        for block in blocks(page):
            try:
                runner.run(block)
            except Exception as error:
                raise AssertionError(f"{block.where} ({block.language}): {error}") from error
    assert {(one.page, one.line) for one in runner.used} == {(one.page, one.line) for one in TABLE if one.page == page}


def test_every_exemption_is_of_a_page() -> None:
    assert {one.page for one in TABLE} <= {*PAGES}
    assert len({(one.page, one.line) for one in TABLE}) == len(TABLE)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_name_their_language(page: str) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES


def test_links_of_the_readme_lead_somewhere() -> None:
    relative = [link.partition("#")[0] for link in links("README.md") if "://" not in link]
    assert len(relative) > 5
    assert [link for link in relative if not (ROOT / link).exists()] == []


def test_examples_are_named_by_a_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES.values())
    examples = {path.name for path in (ROOT / "docs/examples").glob("*.py")} - {"sample_set.py"}
    assert len(examples) > 3 and {name for name in examples if f"docs/examples/{name}" not in text} == set()


# -- the tests' own tools ----------------------------------------------------------------------------------------------


def test_lines_of_a_shell_block() -> None:
    assert shell_lines("# a comment\na b \\\n    c\n\nd  # why\n") == ["a b      c", "d  # why"]


SHOWN = {
    "same numbers": ("Hits 0.5\n", "Hits 0.5\n", True),
    "other numbers": ("Hits 0.5, 1,198 of 3e-05\n", "Hits 1.0, 26 of 0.1\n", True),
    "among others": ("b 1\nd\n", "a\nb 2\nc\nd\n", True),
    "any lines": ("a\n...\nd\n", "a\nb\nd\n", True),
    "another order": ("d\nb\n", "b\nd\n", False),
    "another word": ("Hits 1\n", "MRR 1\n", False),
    "one line twice": ("a\na\n", "a\n", False),
}


@pytest.mark.parametrize(("text", "output", "good"), SHOWN.values(), ids=SHOWN)
def test_what_counts_as_printed(text: str, output: str, good: bool) -> None:
    with contextlib.nullcontext() if good else pytest.raises(AssertionError):
        shown_in(text, output)


ALIKE: dict[str, tuple[Any, Any, bool]] = {
    "other values": ({"a": 1, "b": ["x"]}, {"a": 2.5, "b": ["y", "z"]}, True),
    "a key missing": ({"a": 1}, {"a": 1, "b": 2}, False),
    "a key too many": ({"a": 1, "b": 2}, {"a": 1}, False),
    "deep": ({"a": [{"b": 1}]}, {"a": [{"c": 1}]}, False),
    "null": ({"a": None}, {"a": "x"}, True),
    "another kind": ({"a": "1"}, {"a": 1}, False),
    "a truth is no number": ({"a": True}, {"a": 1}, False),
}


@pytest.mark.parametrize(("shown", "real", "good"), ALIKE.values(), ids=ALIKE)
def test_what_counts_as_alike(shown: Any, real: Any, good: bool) -> None:
    assert alike(shown, real) is good


def test_values_in_a_text() -> None:
    assert values_in('{"a":\n 1}') == [{"a": 1}]
    assert values_in('{"a": 1}\n\n[2]\n') == [{"a": 1}, [2]]
    assert values_in("a sentence") == []


REFUSED = {
    "a command's error": ("sh", "python -m m3el_fast.data check none\n", "status 2"),
    "an option that is not there": ("sh", "m3el data check . --none\n", "status 2"),
    "neither run nor exempt": ("sh", "pip install nothing\n", "neither run nor exempt"),
    "a failing tool": ("sh", "head none\n", "status 1"),
    "no such name": ("python", "print(none)\n", "'none' is not defined"),
    "no such output": ("json", '{"none": 1}\n', "nothing has the form"),
    "a patch that nobody knows": ("diff", "+x\n", "neither run nor exempt"),
}


@pytest.mark.parametrize(("language", "text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_fails(language: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, NameError), match=message):
        Runner().run(Block("index.md", 1, language, text))
