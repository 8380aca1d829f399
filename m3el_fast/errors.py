"""The one error that a user's input can cause, and the way every command reports it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


class InputError(ValueError):
    """Input that cannot be used: names the place, what was expected and what was found.

    Args:
        where: the file, and the record or key in it (``"kb_entity.json, record 17"``).
        expected: what would have been accepted.
        got: what was found instead.
        hint: one sentence on how to mend it, or empty.
    """

    def __init__(self, where: str | Path, expected: str, got: object, hint: str = "") -> None:
        self.where, self.expected, self.got, self.hint = str(where), expected, str(got), hint
        super().__init__(f"{where}: expected {expected}, got {got}" + (f". {hint}" if hint else ""))


def run_command(main: Callable[[], object]) -> None:
    """Run a command's ``main``; an :class:`InputError` ends it with one line on stderr and exit status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
