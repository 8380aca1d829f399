"""The fixture that runs a test at every instruction set of the machine."""

from __future__ import annotations

import pytest

from native_levels import LEVELS


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of them in turn, in force for the test."""
    monkeypatch.setenv("M3EL_CPU_ISA", request.param)
    return str(request.param)
