"""What of the documentation's code does not run in a test, why, and what is checked instead."""

from __future__ import annotations

import argparse
import ast
import contextlib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any
from unittest.mock import patch

from setuptools.config.pyprojecttoml import read_configuration

from docs.blocks import ROOT
from m3el_fast.config import RunConfig


class Parsed(Exception):
    """Ends a command whose arguments were accepted."""


@contextlib.contextmanager
def parsing_only() -> Iterator[None]:
    """Commands end once their arguments are parsed."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: Any, **options: Any) -> None:
        parse(parser, *args, **options)
        raise Parsed

    with patch.object(argparse.ArgumentParser, "parse_args", stop):
        yield


def arguments_parse(line: str) -> None:
    """``python -m MODULE ...`` has these options; a preset that it names is there and valid."""
    words = shlex.split(line, comments=True)
    assert words[:2] == ["python", "-m"], line
    module = import_module(words[2])
    if hasattr(module, "__path__"):
        module = import_module(f"{words[2]}.__main__")
    try:
        with parsing_only(), patch("sys.argv", words[2:]):
            module.main()
    except Parsed:
        pass
    else:
        raise AssertionError(f"{words[2]} parses no arguments")
    if "--config" in words:
        RunConfig.load(words[words.index("--config") + 1])


def extras_exist(line: str) -> None:
    """``pip install -e ".[...]"`` names extras of the project."""
    project = read_configuration(ROOT / "pyproject.toml", expand=False)["project"]
    match = re.search(r'-e "?\.(?:\[(.+)\])?"?', line)
    assert match is not None, line
    names = (match[1] or "").split(",") if match[1] else []
    assert set(names) <= set(project["optional-dependencies"]), line


def is_run_by_ci(line: str) -> None:
    """``.ci/run`` takes the block from the README and runs it."""
    readme, ci = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / ".ci/run").read_text(encoding="utf-8")
    match = re.search(rf"<!-- ci:(\w+) -->\n```sh\n(?:.*\n)*?{re.escape(line)}\n", readme)
    assert match is not None and f"$(readme {match[1]})" in ci


def command_is_installed(line: str) -> None:
    """A package that the project needs brings the command."""
    assert shlex.split(line)[0] in {entry.name for entry in entry_points(group="console_scripts")}


def packages_are_named(line: str) -> None:
    """``pip install`` of other packages: they are requirements that pip can read."""
    from packaging.requirements import Requirement

    words = shlex.split(line)
    assert words[:2] == ["pip", "install"] and [Requirement(word) for word in words[2:]]


def calls_fit(text: str) -> None:
    """The imports work, and what they bring is called with arguments that it has."""
    tree, namespace = ast.parse(text), {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            exec(compile(ast.Module([node], []), "imports", "exec"), namespace)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    for call in calls:
        options = {keyword.arg: None for keyword in call.keywords}
        inspect.signature(namespace[call.func.id]).bind(*call.args, **options)
    assert calls


def added_lines_import(text: str) -> None:
    """Of a patch of the released code: it is one, and what it adds of ours is there."""
    lines = text.splitlines()
    assert all(line[:1] in "+- " for line in lines)
    added = [line[1:].strip() for line in lines if line.startswith("+")]
    assert added
    compat = import_module("m3el_fast.compat")
    for line in added:
        if line.startswith("from m3el_fast"):
            exec(line, {})
        assert all(hasattr(compat, name) for name in re.findall(r"\bcompat\.(\w+)", line))


@dataclass(frozen=True)
class Exempt:
    """A line of a shell block of a page, or a block of another kind that has this line; ``check`` gets the line or the
    block."""

    page: str
    line: str
    reason: str
    check: Callable[[str], None]


INSTALL = "installs packages"
LONG = "trains or measures for minutes, on data that is not here"
RELEASED = "a change of the released code, which is not here; tests/compat holds both against each other"

TABLE = [
    Exempt("README.md", "pip install -e .", INSTALL, extras_exist),
    Exempt("README.md", 'pip install -e ".[test]"', INSTALL, is_run_by_ci),
    Exempt("README.md", "pytest", "is what runs this", is_run_by_ci),
    Exempt(
        "README.md",
        "python -m m3el_fast.data import DIR --entities entities.jsonl --mentions mentions.jsonl",
        "how-to/own-data.md runs it, with files that it makes before",
        arguments_parse,
    ),
    Exempt("README.md", "python -m m3el_fast.train --config wikimel --data DIR", LONG, arguments_parse),
    Exempt("README.md", "python -m bench.text_baselines DIR", LONG, arguments_parse),
    Exempt(
        "README.md",
        "python -m m3el_fast.train --config scratch --data WikiMEL --set encoder.scratch.tokenizer=CLIP_FOLDER",
        LONG,
        arguments_parse,
    ),
    Exempt(
        "README.md",
        "python -m m3el_fast.train --config scratch --data RichpediaMEL --set encoder.scratch.tokenizer=CLIP_FOLDER "
        "--set data.entity_text=desc --set data.kb_mentions=1 --set model.d=96 --set encoder.max_text_tokens=40",
        LONG,
        arguments_parse,
    ),
    Exempt(
        "README.md",
        "from m3el_fast.compat import load_released, to_released",
        "needs a checkpoint of the released code and CLIP's weights; tests/compat has both, small",
        calls_fit,
    ),
    Exempt("quickstart.md", 'pip install -e ".[serve]"', INSTALL, extras_exist),
    Exempt("how-to/rerankers.md", 'pip install -e ".[rerankers]"', INSTALL, extras_exist),
    Exempt("how-to/sentence-transformers.md", 'pip install -e ".[sentence-transformers]"', INSTALL, extras_exist),
    Exempt("how-to/serving.md", 'pip install -e ".[serve]"', INSTALL, extras_exist),
    Exempt("how-to/serving.md", "python -m bench.serve_load CHECKPOINT --index INDEX", LONG, arguments_parse),
    Exempt("how-to/spacy.md", 'pip install -e ".[spacy]"', INSTALL, extras_exist),
    Exempt("how-to/hugging-face-hub.md", "hf auth login", "asks for a token", command_is_installed),
    Exempt(
        "how-to/released-code.md",
        'pip install "pytorch-lightning==1.9.5" "numpy<2" "setuptools<81" omegaconf',
        INSTALL,
        packages_are_named,
    ),
    Exempt(
        "how-to/released-code.md",
        "-from codes.model.modeling_m3el import M3ELEncoder, M3ELMatcher",
        RELEASED,
        added_lines_import,
    ),
    Exempt(
        "how-to/released-code.md",
        "-from codes.model.modeling_mimic import MIMICEncoder, MIMICMatcher",
        RELEASED,
        added_lines_import,
    ),
    Exempt(
        "how-to/released-code.md",
        "         entity_dataloader = self.trainer.datamodule.entity_dataloader()",
        RELEASED,
        added_lines_import,
    ),
    Exempt("how-to/released-code.md", "         answer = batch.pop('answer')", RELEASED, added_lines_import),
]
