"""Benchmark cases in processes of their own: a fresh malloc, a forced instruction set, a peak of memory of its own.

``Worker("bench.cases.all_kb:AllKB", options, environment)`` starts ``python -m bench.worker``, which makes the case
and then answers calls of its methods, one JSON line each way; a round trip takes about 0.1 ms.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TUNED_MALLOC = {  # large blocks come from a heap that is kept: no page faults in every call
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(1 << 30),
}


class Worker:
    """A process that holds one case.

    Args:
        case: ``module:Class``; options: its keyword arguments (JSON values).
        environment: variables to set for the process.

    Raises:
        RuntimeError: the case could not be made.
    """

    def __init__(self, case: str, options: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> None:
        own = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", case, json.dumps(dict(options))],
            env=os.environ | own | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer("making the case")

    def call(self, method: str, *args: Any) -> Any:
        """What the case's method returns.

        Raises:
            RuntimeError: it raised (its traceback is on stderr), or the process ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *args]) + "\n")
        self._process.stdin.flush()
        return self._answer(method)

    def _answer(self, to: str) -> Any:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{to}: the process ended with status {self._process.wait()}; see its stderr")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve(case: str, options: str) -> None:
    """Answer calls until stdin closes; whatever the case prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, name = case.split(":")
    held = getattr(import_module(module), name)(**json.loads(options))

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    answer("ready")
    for line in sys.stdin:
        method, *args = json.loads(line)
        answer(getattr(held, method)(*args))


if __name__ == "__main__":
    serve(*sys.argv[1:])
