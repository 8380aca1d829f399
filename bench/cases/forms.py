"""A case of several computations, each in several forms: the project's, and its peers'."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.machine import median_seconds
from bench.memory import peak_memory


class Computation(ABC):
    """One computation at one size.

    Attributes:
        FORMS: names of its forms, peers first; unit: of what it works on.
        forms: the calls by these names, made on the same operands.
        items: how many ``unit`` each form works on (a slow one on fewer).
        chunks: of forms that take one, the sizes to choose from; their calls have it as the only argument.
    """

    FORMS: ClassVar[tuple[str, ...]]
    unit: ClassVar[str] = "pairs"
    forms: dict[str, Callable[..., Any]]
    items: dict[str, int]
    chunks: dict[str, tuple[int, ...]]

    @abstractmethod
    def check(self, form: str, result: Any) -> None:
        """Assert that the result of a form's call is what the reference gives in fp64."""


class Forms:
    """Computations by name, made when they are first asked for, one of them held at a time.

    Args:
        sizes: keyword arguments of each computation by its name.
    """

    COMPUTATIONS: ClassVar[dict[str, type[Computation]]]

    def __init__(self, sizes: dict[str, dict[str, int]]) -> None:
        torch.set_grad_enabled(False)
        self._sizes, self._name = sizes, ""
        self._computation: Computation | None = None

    def verify(self, name: str, form: str) -> dict[str, Any]:
        """Choose the form's chunk, check its result; returns ``items`` and, where there is a choice, the ``chunk``."""
        if name != self._name:
            self._computation = None  # frees the other one's operands first
            self._computation, self._name = self.COMPUTATIONS[name](**self._sizes[name]), name
        one = self._computation
        assert one is not None
        call, chosen = one.forms[form], {}
        if form in one.chunks:
            seconds = {size: median_seconds(partial(call, size), 1) for size in one.chunks[form]}
            chosen = {"chunk": min(seconds, key=lambda size: seconds[size])}
            call = partial(call, chosen["chunk"])
        self._call = call
        one.check(form, call())
        return {"items": one.items[form], **chosen}

    def run(self) -> None:
        """The form that was verified last."""
        self._call()

    def peak(self) -> int:
        return peak_memory(self._call)


def assert_near(found: Tensor, exact: Tensor, bound: float) -> None:
    """Relative error, Frobenius norm."""
    error = float((found.double() - exact).norm() / exact.norm())
    assert error <= bound, f"relative error {error:.1e} against the reference, expected at most {bound:.1e}"
