"""The Triton and CUDA kernels on a GPU against eager PyTorch and torch.compile: ``python -m bench.gpu_table``.

``bench/gpu_check.sh`` runs this after the tests. Every part checks its results against the reference in fp64 before it
is timed; a part that fails does not keep the others from running, but the exit status says so. A goal that is missed
fails nothing. On the CPU (``--scale tiny``, with TRITON_INTERPRET=1) the same code runs, nothing is timed, and all
times read "not measured".
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
from datetime import date
from pathlib import Path
from typing import Any

import torch

from m3el_fast.files import replace_file
from m3el_fast.ops import gpu

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    from bench.gpu_parts import PARTS as KERNEL_PARTS
    from bench.gpu_parts import SIZES
    from bench.gpu_selection import PARTS as EXTENSION_PARTS

    parts = KERNEL_PARTS | EXTENSION_PARTS
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--scale", choices=tuple(SIZES), default="paper" if on_gpu else "tiny")
    parser.add_argument("--parts", nargs="+", choices=tuple(parts), default=list(parts))
    parser.add_argument("--out", type=Path, help="folder for the table as text and JSON")
    options = parser.parse_args()
    if not on_gpu:
        _interpreted()
        if not EXTENSION_PARTS.keys().isdisjoint(options.parts):
            _emulated()
    lines, rows, failed = [describe()], [], []
    print(lines[0], flush=True)
    for name in options.parts:
        try:
            for row in parts[name](SIZES[options.scale], "cuda" if on_gpu else "cpu"):
                rows.append({"part": name} | row.json())
                lines.append(row.text())
                print(lines[-1], flush=True)
        except Exception as error:  # whatever it is: the other parts go on
            traceback.print_exc()
            failed.append(name)
            lines.append(f"{name}: FAILED: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            print(lines[-1], flush=True)
        if on_gpu:
            torch.cuda.empty_cache()
        if options.out is not None:  # after each part: a lease that ends keeps what was measured
            measured = {"machine": machine(), "scale": options.scale, "rows": rows, "failed": failed}
            _save(options.out / _file_name(options.parts if len(options.parts) < len(parts) else []), lines, measured)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _save(path: Path, lines: list[str], measured: dict[str, Any]) -> None:
    """The table as text and JSON, whole files each."""
    for suffix, text in ((".txt", "\n".join(lines)), (".json", json.dumps(measured, indent=1))):
        with replace_file(path.with_suffix(suffix)) as temporary:
            temporary.write_text(text + "\n")


def machine() -> dict[str, Any]:
    """What the table was measured on."""
    import triton

    found: dict[str, Any] = {"torch": torch.__version__, "triton": triton.__version__, "gpu": None}
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": device.name,
            "memory_gb": round(device.total_memory / 1e9),
            "sms": device.multi_processor_count,
        }
    return found


def describe() -> str:
    return "; ".join(f"{key}: {value or 'none, nothing is timed'}" for key, value in machine().items())


def _interpreted() -> None:
    """Without a GPU Triton's kernels run in its interpreter, with the tests' corrections to it."""
    if not gpu.INTERPRETED:
        sys.exit("no GPU: set TRITON_INTERPRET=1 to check the code in Triton's interpreter")
    sys.path.insert(0, str(ROOT / "tests"))
    from triton_interpreter import correct_bf16

    correct_bf16()


def _emulated() -> None:
    """And the CUDA kernels on the host emulator."""
    from cuda_host import emulated

    emulated.take_place()


def _file_name(parts: list[str]) -> str:
    """gpu-DATE-MACHINE, and the parts where they are not all of them."""
    where = re.sub(r"[^a-z0-9]+", "-", (machine()["gpu"] or "interpreter").lower())
    return "-".join(["gpu", str(date.today()), where, *parts])


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    main()
