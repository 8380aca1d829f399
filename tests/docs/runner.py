"""Runs the code blocks of a page one after another, as a reader would in one folder and one Python session."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import uvicorn
import yaml

from docs.blocks import Block, shell_lines
from docs.exempt import TABLE, Exempt
from docs.workplace import STAND_INS
from m3el_fast.__main__ import main

ADDRESS = "http://127.0.0.1:8000"  # in the pages; the server under test has a port of its own
EXEMPT = {(one.page, one.line): one for one in TABLE}


@dataclass
class Runner:
    """One page's run; the current folder is the page's.

    Attributes:
        outputs: what each shell block so far has printed.
        used: entries of the table of exemptions that matched.
    """

    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    outputs: list[str] = field(default_factory=list)
    used: set[Exempt] = field(default_factory=set)
    servers: list[tuple[uvicorn.Server, threading.Thread]] = field(default_factory=list)

    def run(self, block: Block) -> None:
        """Run a block, or check what it shows against what ran before; AssertionError and others name no place."""
        if block.language == "sh":
            self.outputs.append("".join(self._line(block, line) for line in shell_lines(block.text)))
        elif block.language == "text":
            shown_in(block.text, self.outputs[-1])
        elif not any(self._exempted(block, _bare(line), block.text) for line in block.text.splitlines()):
            forms = {"python": self._python, "json": self._json, "yaml": self._yaml}
            assert block.language in forms, "neither run nor exempt"
            forms[block.language](block)

    def close(self) -> None:
        for server, thread in self.servers:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()

    def _exempted(self, block: Block, line: str, whole: str) -> bool:
        found = EXEMPT.get((block.page, line))
        if found is not None:
            found.check(whole)
            self.used.add(found)
        return found is not None

    # -- what is shown ------------------------------------------------------------------------------------------------

    def _json(self, block: Block) -> None:
        """Somewhere in the page's folder, or in what a command printed, is JSON of this form."""
        printed = [value for output in self.outputs for value in values_in(output)]
        files = [path for path in Path().rglob("*.json*") if path.suffix in (".json", ".jsonl")]
        there = printed + [value for path in files for value in values_in(path.read_text(encoding="utf-8"))]
        shown = values_in(block.text)
        assert shown, "no JSON"
        for value in shown:
            assert any(alike(value, other) for other in there), f"nothing has the form of {value}"

    def _yaml(self, block: Block) -> None:
        assert yaml.safe_load(block.text) is not None

    # -- Python -------------------------------------------------------------------------------------------------------

    def _python(self, block: Block) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block.text, block.where, "exec"), self.namespace)

    # -- shell --------------------------------------------------------------------------------------------------------

    def _line(self, block: Block, line: str) -> str:
        words = shlex.split(line, comments=True)
        plain = re.sub(r"\s+", " ", _bare(line))
        if self._exempted(block, plain, plain):
            return ""
        if plain in STAND_INS:
            words = shlex.split(STAND_INS[plain])
        if words[:2] == ["python", "-m"] and words[2].startswith("m3el_fast."):
            return self._command([words[2].removeprefix("m3el_fast."), *words[3:]])
        if words[0] == "m3el":
            return self._command(words[1:])
        if words[0] == "curl":
            (server, _), *_ = self.servers
            port = server.servers[0].sockets[0].getsockname()[1]
            here = [word.replace(ADDRESS, f"http://127.0.0.1:{port}") for word in words[1:]]
            return _output(["curl", "-sS", "--fail", *here])
        assert words[0] not in ("pip", "python", "torchrun"), f"neither run nor exempt: {line}"
        return _output(["bash", "-euc", line])

    def _command(self, arguments: list[str]) -> str:
        """In this process: a process of its own would import torch for seconds."""
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as errors,
            patch("sys.argv", ["m3el", *arguments]),
            patch("uvicorn.run", self._serve),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
            try:
                main()
            except SystemExit as end:
                raise AssertionError(f"m3el {shlex.join(arguments)}: status {end.code}\n{errors.getvalue()}") from None
        return out.getvalue()

    def _serve(self, app: Any, **options: Any) -> None:
        """In the place of ``uvicorn.run``: the same server, in a thread, until the page ends."""
        server = uvicorn.Server(uvicorn.Config(app, **{**options, "port": 0, "log_level": "error", "log_config": None}))
        thread = threading.Thread(target=server.run)
        thread.start()
        self.servers.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)


def _bare(line: str) -> str:
    """Without its comment."""
    return re.sub(r"\s+#.*$", "", line)


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0, f"{shlex.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def shown_in(text: str, output: str) -> None:
    """Every line of ``text`` is one of the output, in this order; numbers may be others, ``...`` is any lines."""
    lines = iter(_skeletons(output))
    for line in _skeletons(text):
        if line != "...":
            assert any(line == other for other in lines), f"not printed, or not there: {line!r} in\n{output}"


def _skeletons(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.strip():
            yield " ".join(re.sub(r"\d[\d,]*(\.\d+)?(e[+-]\d+)?", "0", line).split())


def values_in(text: str) -> list[Any]:
    """The JSON of a text that is one value, or has one on each line; nothing of any other text."""
    with contextlib.suppress(ValueError):
        return [json.loads(text)]
    with contextlib.suppress(ValueError):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    return []


def alike(shown: Any, real: Any) -> bool:
    """The same keys, and values of the same kinds; null is like anything, and lists may be of other lengths."""
    if isinstance(shown, dict) and isinstance(real, dict):
        return shown.keys() == real.keys() and all(alike(value, real[key]) for key, value in shown.items())
    if isinstance(shown, list) and isinstance(real, list):
        return not shown or not real or all(any(alike(one, other) for other in real) for one in shown)
    kinds = {type(shown), type(real)}
    return type(None) in kinds or len(kinds) == 1 or kinds == {int, float}
