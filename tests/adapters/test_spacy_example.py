"""The spaCy example runs as a new user runs it: on an untrained model, with the installed entry point."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("spacy", reason="spaCy is not installed: pip install -e '.[spacy]'")

from adapters.spacy_cases import write_entry_point

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_example(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(write_entry_point(tmp_path / "site")), str(ROOT)])}
    example = ROOT / "docs" / "examples" / "spacy_pipeline.py"
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    linked = re.findall(r"^  (\w+) \[HOUSE\] -> (Q\d+), score [\d.]+$", done.stdout, re.M)
    assert len(linked) == 3
    assert len(re.findall(r"^    +[\d.]+  Q\d+  \w+$", done.stdout, re.M)) == 9
    assert f"saved and loaded: [{linked[0]}]" in done.stdout  # the same answer, with the same picture
