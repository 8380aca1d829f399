"""Compile every kernel for sm_80, sm_90 and sm_100, without a GPU: kernels/*.py to cubin, csrc/cuda/*.cu to objects.

A module with Triton kernels says what to compile: ``COMPILE_CASES = [(kernel, signature, constexprs), ...]``.
"""

from __future__ import annotations

import subprocess
import tempfile
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = (80, 90, 100)


def compile_triton(path: Path) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for kernel, signature, constexprs in import_module(f"m3el_fast.kernels.{path.stem}").COMPILE_CASES:
        for arch in ARCHITECTURES:
            binary = triton.compile(ASTSource(kernel, signature, constexprs), target=GPUTarget("cuda", arch, 32))
            print(f"{path.name}: {kernel.__name__} {constexprs} sm_{arch}: {len(binary.asm['cubin']):,} bytes of cubin")


def compile_cuda(path: Path) -> None:
    import torch

    include = Path(torch.__file__).parent / "include"
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    flags += ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "kernel.o")
        subprocess.run(["nvcc", *flags, "-isystem", include, "-c", path, "-o", output], check=True)
        print(f"{path.name}: {output.stat().st_size:,} bytes of object code")


def main() -> None:
    triton_files = sorted(path for path in ROOT.glob("kernels/*.py") if path.stem != "__init__")
    cuda_files = sorted(ROOT.glob("csrc/cuda/*.cu"))
    for path in triton_files:
        compile_triton(path)
    for path in cuda_files:
        compile_cuda(path)
    print(f"kernels compiled: {len(triton_files)} Triton files, {len(cuda_files)} CUDA files")


if __name__ == "__main__":
    main()
