"""Compile every kernel for sm_80, sm_90 and sm_100, without a GPU: kernels/*.py by Triton, csrc/cuda/*.cu by nvcc.

A module with Triton kernels says what to compile: ``COMPILE_CASES``, a list of ``CompileCase`` (kernels/cases.py). Each
must keep to its bound of spills, to the chip's shared memory, and to tensor-core instructions; a ``@triton.jit``
function that is neither in a case nor called by another is a failure too. What CUDA kernels must keep to is in
cuda_kernels.py. Prints a table and all failures.

    python .ci/compile_kernels.py         all of the above
    python .ci/compile_kernels.py NAME... only these modules of Triton kernels and CUDA files
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cuda_kernels import compile_files  # noqa: E402

from bench import sass  # noqa: E402

if TYPE_CHECKING:
    from m3el_fast.kernels.cases import CompileCase

ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes a block may ask for
TENSOR_MEMORY = 512  # columns of a multiprocessor (sm_100)
_ROW = "{:<31} {:<44} {:>6} {:>9} {:>6} {:>7}  {}"


class Result(NamedTuple):
    """A line of the table, and what is wrong with it."""

    line: str
    failures: list[str]


class Work(NamedTuple):
    """Case ``number`` of a module, for an architecture; ones: with every size 1, which Triton makes a constant."""

    module: str
    number: int
    arch: int
    ones: bool = False


def compile_case(work: Work) -> Result:
    """Compile a case and check it; with sizes of 1 it has to compile, no more."""
    module, number, arch, ones = work
    case: CompileCase = import_module(module).COMPILE_CASES[number]
    case = with_ones(case) if ones else case
    name = case.kernel.__name__
    row = partial(_ROW.format, name, case.name, f"sm_{arch}")
    try:
        binary = sass.compile_case(case, arch)
    except Exception as error:  # whatever the compiler throws: the other cases go on
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Repro command")]
        what = lines[-1] if lines else type(error).__name__
        return Result(row("", "", "", "failed"), [f"{name}, {case.name}, sm_{arch}: does not compile: {what}"])
    products = sass.tensor_instructions(binary.code)
    text = " ".join(f"{opcode}:{count}" for opcode, count in sorted(products.items())) or "-"
    line = row(binary.registers, binary.stack, f"{binary.shared:,}", text)
    failures = [] if ones else _failures(case, binary, set(products))
    return Result(line, [f"{name}, {case.name}, sm_{arch}: {what}" for what in failures])


def with_ones(case: CompileCase) -> CompileCase:
    sizes = {name for name, kind in case.signature.items() if kind in ("i32", "i64")}
    fixed = {case.kernel.arg_names[p] if isinstance(p, int) else p for p in case.kernel.do_not_specialize or ()}
    constexprs = case.constexprs | dict.fromkeys(sizes - fixed, 1)
    return case._replace(name=f"{case.name}, sizes of 1"[-44:], constexprs=constexprs, aligned=())


def _failures(case: CompileCase, binary: sass.Binary, products: set[str]) -> Iterator[str]:
    if binary.stack > case.spill_bytes:
        yield f"{binary.stack} bytes of spills a thread, at most {case.spill_bytes} allowed"
    if binary.shared > SHARED_LIMIT[binary.arch]:
        yield f"{binary.shared:,} bytes of shared memory, the chip has {SHARED_LIMIT[binary.arch]:,}"
    if binary.tensor_memory > TENSOR_MEMORY:
        yield f"{binary.tensor_memory} columns of tensor memory, the chip has {TENSOR_MEMORY}"
    if case.tensor_cores and not products:
        yield "no tensor-core instruction"
    elif case.tensor_cores and case.wgmma and binary.arch == 90 and not _of_warpgroups(case, products):
        yield f"expected every product to be a warpgroup's (HGMMA), got {' and '.join(sorted(products))}"


def first_cases(module: ModuleType) -> list[int]:
    """Number of the first case of each kernel."""
    kernels = [case.kernel.__name__ for case in getattr(module, "COMPILE_CASES", [])]
    return sorted({name: kernels.index(name) for name in kernels}.values())


def _of_warpgroups(case: CompileCase, products: set[str]) -> bool:
    return "HGMMA" in products and (case.hmma or len(products) == 1)


def uncovered(modules: list[ModuleType]) -> Iterator[str]:
    """The ``@triton.jit`` functions of ``modules`` that no case compiles, directly or inside another function."""
    from triton import JITFunction

    own = {
        function: module.__name__
        for module in modules
        for function in vars(module).values()
        if isinstance(function, JITFunction) and function.__module__ == module.__name__
    }
    compiled = [case.kernel for module in modules for case in getattr(module, "COMPILE_CASES", [])]
    used = {node.id for function in own for node in ast.walk(ast.parse(function.src)) if isinstance(node, ast.Name)}
    for function, module_name in own.items():
        if function not in compiled and function.__name__ not in used:
            yield f"{module_name}: no case of COMPILE_CASES compiles {function.__name__}"


def distinct(module: ModuleType) -> list[int]:
    """Numbers of the cases of ``module``; of those that differ in name alone, the first."""
    first: dict[str, int] = {}
    for number, case in enumerate(getattr(module, "COMPILE_CASES", [])):
        parts = (sorted(case.signature.items()), sorted(case.constexprs.items()), sorted(case.options.items()))
        first.setdefault(f"{case.kernel.__name__} {parts} {case.aligned}", number)
    return list(first.values())


def compile_triton(names: list[str]) -> list[str]:
    """Compile the cases of the modules ``names``, print the table and return the failures."""
    modules = [import_module(name) for name in names]
    work = [
        Work(module.__name__, number, arch)
        for module in modules
        for number in distinct(module)
        for arch in ARCHITECTURES
    ]
    work += [Work(module.__name__, number, 90, ones=True) for module in modules for number in first_cases(module)]
    failures = list(uncovered(modules))
    print(_ROW.format("kernel", "case", "arch", "registers", "spills", "shared", "tensor-core instructions"))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        for line, wrong in pool.map(compile_case, work):
            print(line, flush=True)
            failures += wrong
    print(f"{len(work)} kernels compiled from {len(modules)} Triton files")
    return failures


def main() -> None:
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET is ignored: kernels are compiled")
    files = sorted(path.stem for path in ROOT.glob("kernels/*.py") if path.stem != "__init__")
    everything = [*(f"m3el_fast.kernels.{name}" for name in files), *map(str, sorted(ROOT.glob("csrc/cuda/*.cu")))]
    names = sys.argv[1:] or everything
    modules = [name for name in names if not name.endswith(".cu")]
    cuda_files = [Path(name) for name in names if name.endswith(".cu")]
    failures = compile_triton(modules) if modules else []
    failures += compile_files(cuda_files, ARCHITECTURES, _ROW) if cuda_files else []
    if failures:
        sys.exit("\n".join(["failures:", *failures]))


if __name__ == "__main__":
    main()
