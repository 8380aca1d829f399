"""Run the CUDA ops at the papers' sizes on the host emulator and print each kernel's threads and dynamic shared memory.

Shared memory is that of a block, on a GPU of sm_80's limit; a launch beyond it fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def launch_all() -> None:
    import torch

    from cuda_host import emulated
    from m3el_fast import ops
    from m3el_fast.ops import G2LOperands, LayerNormWeights

    emulated.take_place()
    for rows, columns, k in ((2, 4_000, 10), (1, 70_000, 100), (1, 70_000, 300)):
        ops.topk(torch.randn(rows, columns), k, backend="cuda")
    width, entities, candidates = 96, 40, torch.arange(40)[None]
    norm = LayerNormWeights(torch.ones(width), torch.zeros(width))
    parts = [
        G2LOperands(
            torch.randn(entities, tokens, width).bfloat16(),
            torch.randn(entities, width).bfloat16(),
            torch.randn(1, tokens, width),
            torch.randn(1, tokens, width),
            norm,
            1 / 6,
        )
        for tokens in (40, 50)
    ]
    coarse = torch.randn(1, 800), torch.randn(entities, 800)
    ops.rerank_topk(*coarse, parts, candidates, 10, precision="bf16", backend="cuda")


def main() -> None:
    if sys.argv[1:] == ["launch"]:
        launch_all()
        return
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "M3EL_CUDA_HOST_LOG": "1"}
    done = subprocess.run([sys.executable, __file__, "launch"], env=os.environ | own, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    for line in dict.fromkeys(done.stderr.splitlines()):
        name, threads, shared = line.split()
        print(f"{name:<32} {threads:>5} threads {int(shared):>8,} bytes of shared memory")


if __name__ == "__main__":
    main()
