"""What the benchmarks run on, and the rates that bound them there."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from m3el_fast.ops import gpu
from m3el_fast.ops.build import native_report

LEVELS = ("scalar", "avx2", "avx512", "avx512bf16", "amx")
_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_fp16", "avx512_bf16", "amx_tile", "amx_bf16")


def describe() -> dict[str, object]:
    """CPU, cores, instruction sets, threads, the GPU if any, and versions: goes into every results file."""
    report = native_report()
    return {
        "cpu": _cpuinfo("model name"),
        "cores": os.cpu_count(),
        "isa": [flag for flag in _FLAGS if flag in _cpuinfo("flags").split()],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "native": report.summary,
        "level": level_in_force(),
        **_gpu(),
    }


def _gpu() -> dict[str, object]:
    if not torch.cuda.is_available():
        return {}
    one = torch.cuda.get_device_properties(0)
    name = f"{one.name}, {one.multi_processor_count} multiprocessors, {one.total_memory / 1e9:.0f} GB"
    return {"gpu": name, "kernels": gpu.report()}


def level_in_force() -> str:
    """The level that kernels of this process run at; ``reference`` without the extension."""
    return "reference" if native_report().missing else LEVELS[torch.ops.m3el_fast.cpu_isa()]


def isa_levels() -> list[str]:
    """The levels that M3EL_CPU_ISA can force here, the machine's choice last; ``reference`` without the extension."""
    best = native_report().isa
    if not best:
        return ["reference"]
    flags = set(_cpuinfo("flags").split())
    needs = {"avx2": "avx2", "avx512": "avx512bw", "avx512bf16": "avx512_bf16", "amx": "amx_bf16"}
    levels = [level for level in LEVELS if level == "scalar" or needs[level] in flags]
    return [level for level in levels if level != best] + [best]


def _cpuinfo(field: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.split(":")[0].strip() == field:
            return line.split(":", 1)[1].strip()
    return ""


def read_bandwidth(path: Path, size: int) -> float:
    """Bytes a second at which all threads sum a mapped file of ``size`` bytes that lies in the page cache.

    The file is written at ``path`` and removed.
    """
    values = size // 4
    try:
        torch.from_file(str(path), shared=True, size=values, dtype=torch.float32).fill_(1.0)
        mapped = torch.from_file(str(path), shared=True, size=values, dtype=torch.float32)
        seconds = median_seconds(mapped.sum, 5)
        assert mapped[:1000].sum() == 1000
    finally:
        path.unlink(missing_ok=True)
    return size / seconds


def matmul_rate(dtype: torch.dtype, size: int) -> float:
    """FLOP a second of a product of two ``size`` x ``size`` matrices, with all threads.

    In fp32 the better of torch.matmul (MKL) and oneDNN, which is twice as fast on AMD's AVX-512.
    """
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    seconds = median_seconds(lambda: a @ b, 5)
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():
        left, right, bias = a.to_mkldnn(), b.to_mkldnn(), torch.zeros(size).to_mkldnn()
        seconds = min(seconds, median_seconds(lambda: torch.nn.functional.linear(left, right, bias), 5))
    return 2 * size**3 / seconds


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    """Median time of a call after one to warm up."""
    call()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
