"""Docstrings put small arguments on one line, ``tau: temperature; beta: weight of the own side``: an entry for each."""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"\s*(Args|Attributes):$")
_BOUNDED = re.compile(r"Annotated\[(\w+), (?:[^\[\]]|\[[^\[\]]*\])*\]")
_CONFIG = re.compile(r"(\w+Config)\([^()]+\)")
_NEXT = re.compile(r"; (\w+)(?: \[[^\]]*\])?: ")


def _names(obj: Any) -> set[str]:
    """Parameters of a function, parameters and annotated attributes of a class."""
    names = {name for owner in getattr(obj, "__mro__", ()) for name in getattr(owner, "__annotations__", ())}
    with contextlib.suppress(TypeError, ValueError):  # no signature
        names |= {*inspect.signature(obj).parameters}
    return names


def _split(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    names, result, inside = _names(obj), [], False
    for line in lines:
        if _SECTION.match(line):
            inside = True
        elif line.strip() and not line.startswith(" "):
            inside = False
        indent = line[: len(line) - len(line.lstrip())]
        start = 0
        for found in _NEXT.finditer(line) if inside else ():
            if found[1] in names:
                result.append((indent[:4] if start else "") + line[start : found.start()])
                start = found.start() + 2
        result.append(indent[:4] + line[start:] if start else line)
    lines[:] = result


def _shorten(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str) -> Any:
    """Types without their bounds, and defaults that are configurations without all that is in them."""
    return _CONFIG.sub(r"\1()", _BOUNDED.sub(r"\1", signature or "")) or None, returns


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _split, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _shorten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
