"""The directive ``command-help``: what a command and its subcommands print for ``--help``, taken from their parsers.

The argument is a command of ``m3el`` (``train``), or nothing: the list of all commands.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from m3el_fast.__main__ import COMMANDS, main

WIDTH = "96"


class _Found(Exception):
    """Ends a command once its parser is there."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of ``m3el COMMAND``."""
    found: list[argparse.ArgumentParser] = []

    def take(parser: argparse.ArgumentParser, *args: Any, **options: Any) -> None:
        found.append(parser)
        raise _Found

    name = f"m3el_fast.{command}"
    package = find_spec(name)
    assert package is not None
    module = import_module(f"{name}.__main__" if package.submodule_search_locations else name)
    with patch.object(argparse.ArgumentParser, "parse_args", take), contextlib.suppress(_Found):
        module.main([])
    (parser,) = found
    return parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By name; empty where the command has none."""
    choices = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(choices[0]) if choices else {}


def help_texts(command: str) -> Iterator[tuple[str, str]]:
    """Each command line without its arguments, and the help that it prints."""
    with patch.dict(os.environ, COLUMNS=WIDTH, NO_COLOR="1"):
        if not command:
            with patch("sys.argv", ["m3el", "--help"]), contextlib.redirect_stdout(io.StringIO()) as out:
                main()
            yield "m3el", out.getvalue()
            return
        parser = parser_of(command)
        yield f"m3el {command}", parser.format_help()
        for name, own in subcommands(parser).items():
            yield f"m3el {command} {name}", own.format_help()


class CommandHelp(Directive):
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = self.arguments[0] if self.arguments else ""
        if command and command not in COMMANDS:
            raise self.error(f"expected one of {', '.join(COMMANDS)}, got {command}")
        return [nodes.literal_block(text, text, language="text") for _, text in help_texts(command)]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
