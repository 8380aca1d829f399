"""tests/cuda_host/build.py keeps what the sources say, whoever edits them, builds or cleans up at the same time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from cuda_host import build
from cuda_host.build import compiler

# Copies instead of compiling; the first time, somebody edits the source first.
COMPILER = """#!/bin/sh
while [ $# -gt 1 ]; do case "$1" in -c) in=$2;; -o) out=$2;; *.o) in="$in $1";; esac; shift; done
case "$in" in *kernel.cu) [ -e {edited} ] || { echo second >"$in"; touch {edited}; };; esac
[ -z "$out" ] || cat $in >"$out"
"""


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.usefixtures("empty_cache")
def test_source_edited_during_a_build_is_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "compiler"
    script.write_text(COMPILER.replace("{edited}", str(tmp_path / "edited")))
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    source = tmp_path / "kernel.cu"
    source.write_text("first\n")
    assert build.build([source]).read_text().splitlines()[-1] == "second"
    source.write_text("first\n")
    assert build.build([source]).read_text().splitlines()[-1] == "first"  # nothing else was kept under its name


@pytest.mark.usefixtures("empty_cache")
def test_others_may_remove_files_at_the_same_time() -> None:
    gone, old = build.folder() / "gone.o", build.folder() / "old.o"
    gone.symlink_to("nonexistent")
    old.touch()
    os.utime(old, (0, 0))
    build.remove_old()
    assert not old.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes what belongs to somebody else")
@pytest.mark.usefixtures("empty_cache")
def test_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    link = tmp_path / f"m3el_cuda_host_{os.getuid()}"
    link.symlink_to(tmp_path / "mine")
    os.lchown(link, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to somebody else: set TMPDIR"):
        build.folder()


@pytest.mark.skipif(not compiler(), reason="no C++ compiler")
def test_kernel_that_needs_a_large_stack_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "large.cu"
    source.write_text("float kernel(int i) { volatile float own[20000] = {}; return own[i]; }")
    with pytest.raises(RuntimeError, match="frame size"):
        build.build([source])
