"""Docstrings name sections of the specification that the code follows: here they lead to what explains them."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

_MENTIONED = re.compile(r"(\()?\bspec\s+(?:sections?\s+)?(\d+(?:\.\d)?)(?:(,\s+|\s+and\s+|\s+to\s+)(\d+(?:\.\d)?))?")

SECTIONS = {
    "1": ":ref:`the encoder <encoder>`",
    "2": ":ref:`the ICL loss <icl>`",
    "3": ":ref:`M3EL <m3el>`",
    "3.1": ":ref:`matching within a modality <within>`",
    "3.2": ":ref:`matching across modalities <across>`",
    "3.3": ":ref:`the union score <m3el>`",
    "4": ":ref:`MIMIC <mimic>`",
    "5": ":ref:`the same result for less work <shortcuts>`",
    "6": ":ref:`metrics <metrics>`",
    "7": ":doc:`the data set layout </how-to/own-data>`",
    "8": ":ref:`hyperparameters <hyperparameters>`",
    "10": ":doc:`the released code </how-to/released-code>`",
}


def _link(match: re.Match[str]) -> str:
    bracket, first, join, second = match.groups()
    found = [SECTIONS.get(number, SECTIONS[number.partition(".")[0]]) for number in (first, second) if number]
    joined = f" {(join or '').strip()} ".join(dict.fromkeys(found)).replace(" , ", ", ")
    return f"(see {joined}" if bracket else joined


def _replace(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    try:
        lines[:] = _MENTIONED.sub(_link, "\n".join(lines)).split("\n")
    except KeyError as error:
        logging.getLogger(__name__).warning("%s: no section %s in docs/_ext/spec_sections.py", name, error)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _replace)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
