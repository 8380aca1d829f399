"""The CUDA part of the native build: whether there is to be one, with which nvcc, and for which GPUs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

OLDEST_NVCC = (12, 4)
OLDEST_GPU = 80
COMMON_GPUS = (80, 90, 100)  # where no GPU is visible; the newest also as PTX, which newer GPUs translate
USUAL = Path("/usr/local/cuda")  # where NVIDIA's installers put a toolkit, on nobody's path
NOTE = "_cuda_missing.txt"
FLAGS = ["-std=c++20", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0"]

_INSTALL = 'install the CUDA toolkit, or `pip install "cuda-toolkit[nvcc,cudart,crt,nvvm,cccl]>=13"`'
AGAIN = "then install m3el_fast again"


class CudaMissing(Exception):
    """Why there is no CUDA part: one line, then the compiler's words where there are any."""


class Toolkit(NamedTuple):
    """A CUDA toolkit: its compiler, its release, and the folder of libcudart_static.a."""

    nvcc: Path
    release: tuple[int, int]
    libraries: Path


def forced() -> bool | None:
    """What M3EL_BUILD_CUDA says: build the CUDA part (or fail), do not, or (None) build it where that is possible."""
    given = os.environ.get("M3EL_BUILD_CUDA", "")
    if given not in ("", "0", "1"):
        raise SystemExit(f"M3EL_BUILD_CUDA: expected 0, 1 or nothing, got {given!r}")
    return bool(int(given)) if given else None


def find_toolkit(packages: Iterable[Path]) -> Toolkit:
    """The first toolkit that can build the kernels: CUDA_HOME's, the path's, the usual one, pip's in ``packages``.

    Raises:
        CudaMissing: there is none; names those that were passed over.
    """
    home, on_path = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    candidates = [Path(home, "bin/nvcc")] if home else []
    candidates += [Path(on_path)] if on_path else []
    candidates += [nvcc for nvcc in [USUAL / "bin/nvcc"] if nvcc.exists()]
    candidates += [nvcc for folder in packages for nvcc in sorted(folder.glob("nvidia/cu*/bin/nvcc"), reverse=True)]
    passed_over = []
    for nvcc in dict.fromkeys(candidates):
        try:
            return inspect(nvcc)
        except CudaMissing as reason:
            passed_over.append(str(reason))
    got = "; ".join(passed_over) or f"none in CUDA_HOME, on the path, in {USUAL} or among the Python packages"
    raise CudaMissing(f"no nvcc {_dotted(OLDEST_NVCC)} or newer ({got}): {_INSTALL}, {AGAIN}")


def inspect(nvcc: Path) -> Toolkit:
    """The toolkit of ``nvcc``, which may be a script that starts the real one elsewhere."""
    found = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version"))
    if found is None:
        raise CudaMissing(f"{nvcc} does not run")
    release = int(found[1]), int(found[2])
    if release < OLDEST_NVCC:
        raise CudaMissing(f"{nvcc} is {_dotted(release)}")
    told = _output(nvcc, "-v", "--dryrun", "-x", "cu", "/dev/null")
    settings = dict(re.findall(r"^#\$ (TOP|LIBRARIES)=(.*)$", told, re.MULTILINE))
    folders = [word[2:] for word in shlex.split(settings.get("LIBRARIES", "")) if word.startswith("-L")]
    folders += [f"{settings['TOP'].strip()}/{name}" for name in ("lib64", "lib") if "TOP" in settings]
    libraries = next((Path(folder) for folder in folders if Path(folder, "libcudart_static.a").exists()), None)
    if libraries is None:
        raise CudaMissing(f"{nvcc} has no libcudart_static.a in {' or '.join(folders) or 'any folder'}")
    return Toolkit(nvcc, release, libraries.resolve())


def targets(toolkit: Toolkit) -> list[str]:
    """What to compile for, ``sm_90`` = machine code, ``compute_90`` = PTX: TORCH_CUDA_ARCH_LIST, else the visible GPUs,
    else ``COMMON_GPUS``; of the last two what nvcc knows, and PTX of the newest.

    Raises:
        CudaMissing: TORCH_CUDA_ARCH_LIST cannot be read, or names no GPU that the kernels run on.
    """
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if given:
        return _named(given)
    known = [int(number) for number in re.findall(r"sm_(\d+)\b", _output(toolkit.nvcc, "--list-gpu-code"))]
    wanted = [gpu for gpu in visible_gpus() if gpu >= OLDEST_GPU] or COMMON_GPUS
    chosen = sorted({max((k for k in known if k <= gpu), default=OLDEST_GPU) for gpu in wanted})
    return [*(f"sm_{gpu}" for gpu in chosen), f"compute_{chosen[-1]}"]


def _named(given: list[str]) -> list[str]:
    found = []
    for name in given:
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parts is None:
            raise CudaMissing(
                f"TORCH_CUDA_ARCH_LIST: expected numbers such as '8.0 9.0a 10.0+PTX', got {name!r}: change it, {AGAIN}"
            )
        number = f"{parts[1]}{parts[2]}"
        if int(number) >= OLDEST_GPU:
            found += [f"sm_{number}{parts[3]}", *([f"compute_{number}{parts[3]}"] if parts[4] else [])]
    if not found:
        least = _dotted(divmod(OLDEST_GPU, 10))
        raise CudaMissing(
            f"TORCH_CUDA_ARCH_LIST={' '.join(given)}: the kernels take compute capability {least} and newer: "
            f"change it, {AGAIN}"
        )
    return list(dict.fromkeys(found))


def visible_gpus() -> list[int]:
    """Compute capabilities of the GPUs that the driver sees, 90 for 9.0."""
    told = _output(Path("nvidia-smi"), "--query-gpu=compute_cap", "--format=csv,noheader")
    return [int(f"{major}{minor}") for major, minor in re.findall(r"^(\d+)\.(\d)\s*$", told, re.MULTILINE)]


def compile_command(toolkit: Toolkit, codes: Iterable[str], host: list[str]) -> list[str]:
    """nvcc with all its flags but the files; ``host`` is the C++ compiler's command."""
    gpus = [f"-gencode=arch={code.replace('sm_', 'compute_')},code={code}" for code in codes]
    through = ["-ccbin", host[0]] if len(host) == 1 else []  # nvcc takes no command of several words
    return [str(toolkit.nvcc), *through, *FLAGS, *gpus]


def link_flags(toolkit: Toolkit) -> list[str]:
    """The CUDA runtime inside the library: it loads without a driver, and beside the runtime of any torch."""
    hidden = "-Wl,--exclude-libs,libcudart_static.a"
    return [f"-L{toolkit.libraries}", hidden, "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def describe(toolkit: Toolkit, codes: Iterable[str]) -> str:
    """Such as ``nvcc 13.0, sm_80 sm_90+PTX``."""
    gpus = re.sub(r"sm_(\w+) compute_\1\b", r"sm_\1+PTX", " ".join(codes))
    return f"nvcc {_dotted(toolkit.release)}, {gpus}"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _output(tool: Path, *arguments: str) -> str:
    """What a tool prints; empty where it does not run."""
    try:
        done = subprocess.run(
            [tool, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
