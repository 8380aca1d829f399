"""The reranking examples run, on a checkpoint and, as a new user runs them, without; a missing extra is one line."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import m3el_fast
from m3el_fast.adapters import extras
from m3el_fast.link import Linker
from tiny import tiny_config, tiny_model, write_tiny

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NEEDS = {
    "sentence_transformers_rerank": "sentence_transformers",
    "rerankers_rank": "rerankers",
    "pylate_rerank": None,
}
EXTRAS = {"sentence_transformers": "sentence-transformers", "rerankers": "rerankers"}


def skip_without(library: str | None) -> None:
    if library is not None:
        pytest.importorskip(library, reason=f"the extra {EXTRAS[library]} is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    tiny_model(tiny_config(write_tiny(folder / "data"))).save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs_on_a_checkpoint(
    name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_without(NEEDS[name])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, str(checkpoint)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    shown = capsys.readouterr().out
    linker = Linker.from_pretrained(checkpoint, checkpoint.parent / "data")
    ((best,),) = linker.link([{"mention": "Elm", "sentence": "We saw the inn number 0"}], k=1)
    found = re.search(r"We saw the inn number 0  \(answer: Q0\)\s.*?(Q\d+)", shown, re.DOTALL)
    assert found is not None and found[1] == best["id"]
    assert ("mrr@10" in shown) == (name == "sentence_transformers_rerank")


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs_as_a_new_user_runs_it(name: str, tmp_path: Path) -> None:
    skip_without(NEEDS[name])
    path = str(Path(m3el_fast.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "an untrained model" in done.stdout and "(answer: Q" in done.stdout
    assert list(tmp_path.iterdir()) == []  # what it made is removed


@pytest.mark.parametrize("module", EXTRAS)
def test_a_missing_extra_is_one_line(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    path = Path(m3el_fast.__file__).parent / "adapters" / f"{module}.py"
    spec = importlib.util.spec_from_file_location("adapter_without_its_library", path)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ModuleNotFoundError) as error:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert str(error.value) == f"{module} is not installed: pip install -e '.[{EXTRAS[module]}]'"
