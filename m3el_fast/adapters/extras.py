"""Libraries that only one adapter needs."""

from __future__ import annotations

from importlib.util import find_spec


def require(module: str, extra: str) -> None:
    """Say in one line what to install where ``module`` is missing.

    Raises:
        ModuleNotFoundError: it is.
    """
    if find_spec(module) is None:
        raise ModuleNotFoundError(f"{module} is not installed: pip install -e '.[{extra}]'", name=module)
