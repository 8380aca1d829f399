"""Whether compiled CUDA code runs with a driver and on a GPU."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable


def driver_version() -> int:
    """CUDA of the driver, 1000 x major + 10 x minor; 0 = there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value


def driver_obstacle(built: str, driver: int) -> str:
    """Why a driver of this version cannot run kernels ``built`` by "nvcc MAJOR.MINOR, ..."; empty where it can. Minor
    versions of CUDA run each other's code."""
    nvcc = re.match(r"nvcc (\d+)", built)
    if nvcc is None or driver == 0 or driver // 1000 >= int(nvcc[1]):
        return ""
    own = f"{driver // 1000}.{driver % 1000 // 10}"
    wanted = f"the kernels need a driver for CUDA {nvcc[1]} ({built}), this one is for {own}"
    return f"{wanted}: update it, or install again with an older nvcc"


def runs(codes: Iterable[tuple[str, str, str]], major: int, minor: int) -> bool:
    """Whether a GPU of compute capability ``major.minor`` runs one of the codes: number, ``a`` (that GPU alone) or
    ``f`` (its family), and ``+PTX`` where the driver can translate it for newer ones."""
    for number, kind, ptx in codes:
        code_major, code_minor = divmod(int(number), 10)
        exact = (major, minor) == (code_major, code_minor)
        newer = (major, minor) >= (code_major, code_minor) and (major == code_major or (ptx and not kind))
        if exact or (newer and kind != "a"):
            return True
    return False
