"""Refusals: the status and the JSON of every answer that is not a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from m3el_fast.errors import InputError

_SHOWN = 80  # characters of what a client sent
_ERRORS = 1_000  # in a request; more of them would take much more memory than the request


class Refused(InputError):
    """An :class:`InputError` with a status of its own; without one it is 422."""

    def __init__(
        self, status: int, where: str, expected: str, got: object, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(where, expected, got)
        self.status, self.headers = status, dict(headers or {})


def error_content(where: str, expected: str, got: object) -> dict[str, Any]:
    """The JSON of a refusal."""
    return {"error": {"where": where, "expected": expected, "got": str(got)}}


def shown(value: object) -> str:
    """What a client sent, short enough to be repeated to it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def place(location: tuple[int | str, ...]) -> str:
    """``("mentions", 0, "image")`` as everywhere in this package: ``mentions, record 1, field image``."""
    parts = []
    for depth, step in enumerate(location):
        if isinstance(step, int):
            parts.append(f"{'record' if depth == 1 else 'item'} {step + 1}")
        else:
            name = step if len(step) <= _SHOWN else step[:_SHOWN] + "..."
            parts.append(f"field {name}" if depth else name)
    return ", ".join(parts) or "body"


def first_error(errors: ValidationError) -> InputError:
    """The first of pydantic's errors."""
    if errors.error_count() > _ERRORS:
        return InputError("body", "fields as /docs lists them", f"{errors.error_count():,} errors")
    error = errors.errors(include_url=False)[0]
    kind, where, context = error["type"], place(error["loc"]), error.get("ctx", {})
    if kind == "json_invalid":
        return Refused(400, "body", "JSON", context["error"])
    if kind == "missing":
        return InputError(where, "a value", "no such field")
    if kind == "extra_forbidden":
        return InputError(where, "a field that is known", shown(error["loc"][-1]))
    if kind in ("too_long", "too_short"):
        bound = context["max_length"] if kind == "too_long" else context["min_length"]
        return InputError(where, f"at {'most' if kind == 'too_long' else 'least'} {bound:,}", _length(context))
    if kind == "string_too_long":
        return InputError(where, f"at most {context['max_length']:,} characters", f"{len(error['input']):,}")
    if kind == "value_error":
        return InputError(where, str(context["error"]), shown(error["input"]))
    return InputError(where, error["msg"].removeprefix("Input should be "), shown(error["input"]))


def _length(context: dict[str, Any]) -> str:
    actual = context.get("actual_length")
    return "more" if actual is None else f"{actual:,}"
