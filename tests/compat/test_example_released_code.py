"""The example of the released code's training and evaluation runs as it stands; its page uses names that there are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from m3el_fast import compat

ROOT = Path(__file__).parents[2]


def test_the_example_runs_anywhere(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "docs" / "examples" / "released_code.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    mrr = {
        name: float(re.search(rf"^{name} .* (\S+) +\S+$", done.stdout, re.MULTILINE)[1])
        for name in ("untrained", "trained, rank_all", "trained, released loop")
    }
    assert mrr["trained, rank_all"] == mrr["trained, released loop"]
    assert mrr["trained, rank_all"] > 0.7 > 0.3 > mrr["untrained"]
    # the loop's scores and the scan's are of other orders of summation: a rank may turn in a tie of fp32
    assert int(re.search(r"ranks that agree: (\d+) of 100", done.stdout)[1]) >= 98
    assert not list(tmp_path.iterdir())


def test_the_page_uses_what_there_is() -> None:
    page = (ROOT / "docs" / "how-to" / "released-code.md").read_text(encoding="utf-8")
    imported = re.findall(r"from m3el_fast\.compat import ([\w, ]+\w)", page)
    names = {*re.findall(r"\bcompat\.(\w+)\(", page), *", ".join(imported).split(", ")}
    losses = {"WeightedContrastiveLoss", "InfoNCELoss", "MCLETLoss"}
    assert names == {"M3ELMatcher", "MIMICMatcher", "PreparedEntities", "rank_all", *losses}
    assert names <= {*compat.__all__}
