"""Compile CUDA files with nvcc for each architecture, without a GPU, and check what came of every kernel.

A file says, near each of its kernels, what the machine code of every instance must have, or that it need have nothing:

    // SASS of rerank_kernel: tensor cores, 16-byte loads
    // SASS of merge_kernel: nothing

A kernel of which no file says anything is a failure, and so is what is said of a kernel that is not there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from os import sched_getaffinity
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "csrc")]

import cuda_build  # noqa: E402
from bench import sass  # noqa: E402
from native_build import compiler, package_folders  # noqa: E402

WORDS = ("tensor cores", "16-byte loads", "nothing")

_CLAIM = re.compile(r"^// SASS of (\w+): (.*)$", re.MULTILINE)
_USAGE = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers(.*?)$",
    re.DOTALL | re.MULTILINE,
)


class Kernel(NamedTuple):
    """One instance of a kernel, compiled for one architecture.

    Attributes:
        name: without namespaces; instance: its template arguments.
        registers: of a thread; spilled: bytes it stores and loads; stack: bytes of its frame, spills and local arrays.
        shared: bytes of static shared memory.
        products: tensor-core instructions by opcode; wide: 16-byte loads from global memory, LDG and LDGSTS.
    """

    name: str
    instance: str
    arch: int
    registers: int
    spilled: int
    stack: int
    shared: int
    products: Counter[str]
    wide: Counter[str]

    def failures(self, claims: Sequence[str]) -> Iterator[str]:
        if self.stack or self.spilled:
            yield f"{self.spilled} bytes of spills, a stack frame of {self.stack} bytes: expected none"
        if "tensor cores" in claims and not self.products:
            yield "no tensor-core instruction"
        if "16-byte loads" in claims and not self.wide:
            yield "no 16-byte load from global memory (LDG.128 or LDGSTS.128)"


def compile_files(files: Sequence[Path], architectures: Sequence[int], row: str) -> list[str]:
    """Compile ``files``, print a line of the format ``row`` for every kernel, and return what is wrong."""
    try:
        toolkit = cuda_build.find_toolkit(package_folders())
    except cuda_build.CudaMissing as missing:
        return [f"CUDA kernels: {missing}"]
    claims, failures = read_claims(files)
    work = list(product(files, architectures))
    print(row.format("kernel", "instance", "arch", "registers", "stack", "shared", "tensor cores, 16-byte loads"))
    found: set[str] = set()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(sched_getaffinity(0))) as pool:
        done = pool.map(lambda item: _compile(toolkit, *item, Path(folder)), work)
        for (path, arch), kernels in zip(work, done, strict=True):
            if isinstance(kernels, str):
                failures.append(f"{path.name}, sm_{arch}: does not compile: {kernels}")
                continue
            for kernel in kernels:
                found.add(kernel.name)
                print(_line(kernel, row), flush=True)
                where = f"{kernel.name}{kernel.instance}, sm_{arch}"
                failures += [f"{where}: {what}" for what in kernel.failures(claims.get(kernel.name, []))]
    for name in sorted(found - claims.keys()):
        failures.append(f"{name}: nothing is said of its machine code, such as `// SASS of {name}: 16-byte loads`")
    if not any("does not compile" in failure for failure in failures):
        gone = sorted(claims.keys() - found)
        failures += [f"{name}: its machine code is spoken of, but there is no such kernel" for name in gone]
    print(f"{len(files)} CUDA files compiled for {len(architectures)} architectures by {toolkit.nvcc}")
    return failures


def read_claims(files: Sequence[Path]) -> tuple[dict[str, list[str]], list[str]]:
    """What the files say of each kernel, and what cannot be read of that."""
    claims: dict[str, list[str]] = {}
    failures = []
    for path in files:
        for name, text in _CLAIM.findall(path.read_text(encoding="utf-8")):
            claims[name] = text.split(", ")
            if not set(claims[name]) <= set(WORDS):
                failures.append(f"{path.name}, {name}: expected {' or '.join(map(repr, WORDS))}, got {text!r}")
    return claims, failures


def _compile(toolkit: cuda_build.Toolkit, path: Path, arch: int, folder: Path) -> list[Kernel] | str:
    """The kernels of a file, or why it does not compile."""
    cubin = folder / f"{path.stem}-{arch}.cubin"
    command = cuda_build.compile_command(toolkit, [f"sm_{arch}"], compiler())
    done = _run(*command, "-cubin", "-Xptxas", "-v", path, "-o", cubin)
    if done.returncode:
        lines = done.stderr.splitlines() or ["nothing was said"]
        return next((line for line in lines if re.search(r"\b(error|fatal)\b", line)), lines[0])
    beside = toolkit.nvcc.with_name("cuobjdump")
    text = _run(beside if beside.exists() else _of_triton("cuobjdump"), "-sass", cubin).stdout
    code = dict(re.findall(r"Function : (\w+)\n(.*?)(?=\n\s*Function : |\Z)", text, re.DOTALL))
    usages = _USAGE.findall(done.stderr)
    entries = done.stderr.count("Compiling entry function")
    if len(usages) != entries or any(symbol not in code for symbol, *_ in usages):
        return "what ptxas and cuobjdump say of it cannot be read"
    return [_kernel(arch, usage, sass.parse(code[usage[0]])) for usage in usages]


def _of_triton(tool: str) -> Path:
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin" / tool


def _kernel(arch: int, usage: Sequence[str], code: list[sass.Instruction]) -> Kernel:
    symbol, stack, stores, loads, registers, rest = usage
    shared = re.search(r"(\d+) bytes smem", rest)
    full = _run("c++filt", symbol).stdout.strip() if shutil.which("c++filt") else symbol
    full = re.sub(r"\(anonymous namespace\)::|m3el::gpu::", "", full)
    named = re.fullmatch(r"(?:.* )?(?:\w+::)*(\w+)(<.*>)?\(.*\)", full)
    name, instance = (named[1], named[2] or "") if named else (full, "")
    wide = Counter(i.opcode for i in code if i.opcode in ("LDG", "LDGSTS") and "128" in i.modifiers)
    return Kernel(
        name,
        instance,
        arch,
        int(registers),
        int(stores) + int(loads),
        int(stack),
        int(shared[1]) if shared else 0,
        sass.tensor_instructions(code),
        wide,
    )


def _line(kernel: Kernel, row: str) -> str:
    instructions = kernel.products + Counter({f"{name}.128": count for name, count in kernel.wide.items()})
    text = " ".join(f"{name}:{count}" for name, count in sorted(instructions.items())) or "-"
    return row.format(
        kernel.name, kernel.instance, f"sm_{kernel.arch}", kernel.registers, kernel.stack, f"{kernel.shared:,}", text
    )


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace")
