"""Build tests/native and the CPU kernels with address and undefined-behaviour sanitizers, and run it.

The AMX kernel is built on emulated tiles (csrc/cpu/amx_tiles.h), so that it runs on any AVX-512 machine.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "csrc"))
from native_build import compile_flags, compiler  # noqa: E402

FLAGS = [
    *("-O1", "-g", "-std=c++20", "-fno-omit-frame-pointer", "-Wall", "-Wextra"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DM3EL_EMULATE_AMX"),
]


def build(source: Path, folder: Path) -> Path | None:
    own = compile_flags(str(source))
    if own is None:
        return None
    target = folder / f"{source.stem}.o"
    include = f"-I{ROOT / 'csrc/cpu'}"
    subprocess.run([*compiler(), *FLAGS, *own, include, "-c", str(source), "-o", str(target)], check=True)
    return target


def main() -> None:
    kernels = [path for path in sorted((ROOT / "csrc/cpu").glob("*.cpp")) if not path.name.endswith("ops.cpp")]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(2) as pool:
        folder = Path(name)
        checks = sorted((ROOT / "tests/native").glob("*.cpp"))
        built = pool.map(lambda source: build(source, folder), [*kernels, *checks])
        objects = [str(path) for path in built if path is not None]
        driver = str(folder / "driver")
        subprocess.run([*compiler(), *FLAGS, *objects, "-lpthread", "-o", driver], check=True)
        raise SystemExit(subprocess.run([driver]).returncode)


if __name__ == "__main__":
    main()
