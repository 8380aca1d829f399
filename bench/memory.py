"""Peak memory of a call, as the kernel counts it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes by which this process's memory grows at most while ``call`` runs.

    What earlier calls left in malloc's free lists is given back first, so that using it again counts. Pages of mapped
    files that the call is the first to touch would count too (the kernel keeps one peak): call it once before.

    Raises:
        OSError: the system does not let a process reset its peak (``/proc/self/clear_refs``).
    """
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")  # resets VmHWM
    before = _kilobytes("VmRSS")
    call()
    return max(0, _kilobytes("VmHWM") - before) * 1024


def _kilobytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise OSError(f"{_STATUS} has no {field}")
