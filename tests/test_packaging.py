"""What pyproject.toml says against what is there, the package's own module, and the command line's front door."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import read_configuration

import m3el_fast
from m3el_fast.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]


def python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, **env}
    return subprocess.run(
        [sys.executable, *arguments], env=settings, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_every_package_of_the_tree_is_installed() -> None:
    project = read_configuration(ROOT / "pyproject.toml", expand=False)
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("m3el_fast/**/__init__.py")}
    assert set(project["tool"]["setuptools"]["packages"]) == there | {"m3el_fast.kernels"}


def test_kernels_package_is_what_transformers_bears() -> None:
    # transformers probes for Hugging Face's package `kernels`, and meets this folder where the checkout is on sys.path
    assert (ROOT / "kernels/__init__.py").read_text() == '__version__ = "0.0.0"\n'


def test_kernels_import_from_a_plain_checkout() -> None:
    code = "import m3el_fast.kernels; print(m3el_fast.kernels.__file__)"
    done = python("-S", "-c", code, PYTHONPATH=str(ROOT))
    assert done.stdout.strip() == str(ROOT / "kernels/__init__.py"), done.stderr


def test_import_is_cheap() -> None:
    done = python("-c", "import sys, m3el_fast; print('torch' in sys.modules)", PYTHONPATH=str(ROOT))
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("name", m3el_fast.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(m3el_fast, name)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = m3el_fast.nonesuch


@pytest.mark.parametrize("command", COMMANDS)
def test_front_door_runs_the_module_of_that_name(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr("runpy.run_module", lambda name, **_: calls.append((name, sys.argv)))
    monkeypatch.setattr("sys.argv", ["m3el", command, "--flag", "value"])
    main()
    assert calls == [(f"m3el_fast.{command}", [f"m3el {command}", "--flag", "value"])]
    assert find_spec(f"m3el_fast.{command}") is not None


def test_front_door_is_the_module_itself() -> None:
    through = python("-m", "m3el_fast", "data", "--help", PYTHONPATH=str(ROOT))
    direct = python("-m", "m3el_fast.data", "--help", PYTHONPATH=str(ROOT))
    assert through.returncode == 0, through.stderr
    assert through.stdout == direct.stdout


@pytest.mark.parametrize(("arguments", "got"), [((), "no command"), (("trian",), "'trian'")], ids=["none", "unknown"])
def test_front_door_lists_the_commands(arguments: tuple[str, ...], got: str) -> None:
    done = python("-m", "m3el_fast", *arguments, PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert got in done.stderr
    assert all(command in done.stderr for command in COMMANDS)


def test_version() -> None:
    done = python("-m", "m3el_fast", "--version", PYTHONPATH=str(ROOT))
    assert done.stdout == f"m3el_fast {m3el_fast.__version__}\n"
