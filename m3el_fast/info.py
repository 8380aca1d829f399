"""``python -m m3el_fast.info``: versions, the native part's build, devices, and which backends run here or why not."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator

import torch

import m3el_fast
from m3el_fast.ops import cuda, gpu, native
from m3el_fast.ops.build import native_report


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(prog="m3el info", description="What the kernels are and can do here.").parse_args(argv)
    print(f"m3el_fast {m3el_fast.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print(native_report())
    if forced := forced_level():
        print(forced)
    print(gpu.report())
    print(f"torch's CUDA: {torch.version.cuda or 'none, this torch is for CPUs'}")
    print("\n".join(devices()) or "CUDA devices: none visible")
    for name, obstacle in backends().items():
        print(f"backend {name}: {f'not available: {obstacle}' if obstacle else 'available'}")


def forced_level() -> str:
    """What M3EL_CPU_ISA makes of the CPU kernels, or why it cannot; empty where it is not set."""
    level = os.environ.get("M3EL_CPU_ISA")
    if not level or native.MISSING:
        return ""
    try:
        native.scan_precision()
    except RuntimeError as error:
        return str(error)
    return f"isa in force: {level}, by M3EL_CPU_ISA"


def devices() -> Iterator[str]:
    """A line for each CUDA device."""
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        yield (
            f"CUDA device {i}: {found.name}, compute capability {found.major}.{found.minor}, "
            f"{found.multi_processor_count} multiprocessors, {found.total_memory >> 30} GiB"
        )


def backends() -> dict[str, str]:
    """Why each backend of ``m3el_fast.ops`` runs nothing here, in one line; empty where it does."""
    no_gpu = "" if torch.cuda.is_available() else "no CUDA device"
    missing = {
        "reference": "",
        "native": native.MISSING,
        "triton": gpu.MISSING or ("" if gpu.INTERPRETED else no_gpu),
        "cuda": cuda.MISSING or no_gpu,
    }
    return {name: why.partition("\n")[0] for name, why in missing.items()}


if __name__ == "__main__":
    main()
