"""What the released matchers read of ``args.model`` (spec section 10)."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from m3el_fast.errors import InputError


class Settings:
    """The section ``model`` of the released code's configuration: any object with attributes, such as OmegaConf's
    DictConfig or an argparse Namespace.

    Raises:
        InputError: ``args`` has no ``model``; and from each method, the value is missing or of another kind.
    """

    def __init__(self, args: Any) -> None:
        self._section = getattr(args, "model", None)
        if self._section is None:
            raise InputError("args", "an object with the attribute model", type(args).__name__)

    def size(self, name: str) -> int:
        value = self._get(name)
        if not isinstance(value, Integral) or value < 1:
            raise InputError(f"args.model.{name}", "a whole number of at least 1", repr(value))
        return int(value)

    def number(self, name: str) -> float:
        value = self._get(name)
        if not isinstance(value, Real):
            raise InputError(f"args.model.{name}", "a number", repr(value))
        return float(value)

    def has(self, name: str) -> bool:
        return getattr(self._section, name, None) is not None

    def choice(self, name: str, allowed: range) -> int:
        value = self._get(name)
        if not isinstance(value, Integral) or value not in allowed:
            raise InputError(f"args.model.{name}", f"a whole number in {allowed[0]}..{allowed[-1]}", repr(value))
        return int(value)

    def equal(self, name: str, other: str) -> int:
        """A size that the released layers need twice, under two names."""
        size, second = self.size(name), self.size(other)
        if size != second:
            raise InputError(f"args.model.{name}", f"{other}, {second}: the same layers read both", size)
        return size

    def _get(self, name: str) -> Any:
        if not self.has(name):
            raise InputError(f"args.model.{name}", "a value", "none")
        return getattr(self._section, name)
