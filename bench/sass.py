"""Kernels compiled without a GPU, and what their machine code says: registers, spills, shared memory, instructions.

Uses the ptxas, cuobjdump and nvdisasm that ship inside the triton package. Triton's interpreter must be off
(``TRITON_INTERPRET``) in the process that compiles.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from m3el_fast.kernels.cases import CompileCase


class Instruction(NamedTuple):
    """One line of SASS: ``@P0 LDS.128 R4, [R8]`` has guard ``P0``, opcode ``LDS``, modifiers ``("128",)``."""

    address: int
    guard: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: str


@dataclass(frozen=True)
class Binary:
    """A kernel compiled for one architecture.

    Attributes:
        arch: 80, 90, 100; warps: of a program.
        registers: of a thread; stack: bytes of a thread in local memory, spilled registers above all.
        shared: bytes a program asks for; tensor_memory: columns (sm_100).
        code: its instructions.
    """

    arch: int
    warps: int
    registers: int
    stack: int
    shared: int
    tensor_memory: int
    code: list[Instruction]


def compile_case(case: CompileCase, arch: int) -> Binary:
    """Compile ``case`` for sm_``arch`` as its launcher would."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    signature = {name: "constexpr" if name in case.constexprs else case.signature[name] for name in names}
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name in case.aligned]
    source = ASTSource(
        case.kernel,
        signature,
        dict(case.constexprs),
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(case.options))
    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as place:
        cubin = Path(place, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        sass, usage = (_output(folder / "cuobjdump", option, cubin) for option in ("-sass", "-res-usage"))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump -res-usage: expected REG and STACK, got {usage!r}")
    meta = compiled.metadata
    return Binary(
        arch,
        meta.num_warps,
        int(found[1]),
        int(found[2]),
        meta.shared,
        getattr(meta, "tmem_size", None) or 0,
        parse(sass),
    )


def _output(tool: Path, option: str, file: Path) -> str:
    return subprocess.run([tool, option, file], capture_output=True, text=True, check=True).stdout


_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_]*)((?:\.\w+)*)\s*([^;]*?)\s*;")


def parse(sass: str) -> list[Instruction]:
    """The instructions of what ``cuobjdump -sass`` prints for one kernel."""
    found = (_LINE.match(line) for line in sass.splitlines())
    return [
        Instruction(int(m[1], 16), m[2] or "", m[3], tuple(m[4].split(".")[1:]), m[5]) for m in found if m is not None
    ]


def tensor_instructions(code: Iterable[Instruction]) -> Counter[str]:
    """Tensor-core instructions by opcode: HMMA, HGMMA (a warpgroup's), UTCHMMA (sm_100)."""
    return Counter(i.opcode for i in code if i.opcode.endswith("MMA"))


# ----------------------------------------------------------------------------------------------------------------------
# Loops


@dataclass
class Loop:
    """A loop of the machine code, or (as the root) the code outside of any.

    Attributes:
        body: its instructions that are in no inner loop; inner: loops directly inside, by address.
    """

    body: list[Instruction]
    inner: list[Loop] = field(default_factory=list)

    def walk(self) -> list[Loop]:
        """All loops inside, each before its inner ones, by address."""
        return [found for loop in self.inner for found in (loop, *loop.walk())]


def loops(code: list[Instruction]) -> Loop:
    """The tree of natural loops. Loops that only wait (for a barrier's phase) count as straight code; code that only a
    call reaches (the slow paths of division) is left out."""
    blocks, successors = _blocks(code)
    dominators = _dominators(successors)
    members: dict[int, set[int]] = {}
    for tail, heads in successors.items():
        for head in heads:
            if tail in dominators and head in dominators[tail]:  # a back edge
                members.setdefault(head, {head}).update(_reaching(tail, head, successors))
    real = {
        head: inside
        for head, inside in members.items()
        if not all(i.opcode in _WAITING or i.opcode.startswith("U") for block in inside for i in blocks[block])
    }
    root = Loop([])
    nodes = {head: Loop([]) for head in real}
    for head in sorted(real):
        outer = [h for h in real if h != head and head in real[h]]
        parent = nodes[min(outer, key=lambda h: len(real[h]))] if outer else root
        parent.inner.append(nodes[head])
    for start in sorted(dominators):
        around = [h for h in real if start in real[h]]
        owner = nodes[min(around, key=lambda h: len(real[h]))] if around else root
        owner.body.extend(blocks[start])
    return root


_JUMPS = ("BRA", "BRX", "JMP", "EXIT", "RET")
_WAITING = {"BRA", "SYNCS", "NOP", "NANOSLEEP", "YIELD", "WARPSYNC"}


def _blocks(code: list[Instruction]) -> tuple[dict[int, list[Instruction]], dict[int, list[int]]]:
    """Basic blocks by first address, and the blocks that follow each."""
    starts = {code[0].address}
    for one, after in pairwise(code):
        if one.opcode in _JUMPS:
            starts.add(after.address)
            starts.update(_targets(one))
    blocks: dict[int, list[Instruction]] = {}
    start = code[0].address
    for one in code:
        if one.address in starts:
            start = one.address
        blocks.setdefault(start, []).append(one)
    order = sorted(blocks)
    follows = dict(pairwise(order))
    successors = {}
    for start, block in blocks.items():
        last = block[-1]
        heads = _targets(last) if last.opcode in _JUMPS else []
        # a uniform branch names its predicate among its operands: BRA.U !UP0, 0x130
        certain = last.opcode in _JUMPS and not last.guard and "P" not in last.operands
        if not certain and start in follows:
            heads = [*heads, follows[start]]
        successors[start] = [head for head in heads if head in blocks]
    return blocks, successors


def _targets(jump: Instruction) -> list[int]:
    found = re.search(r"0x([0-9a-f]+)$", jump.operands)
    return [int(found[1], 16)] if found and jump.opcode in ("BRA", "JMP") else []


def _dominators(successors: dict[int, list[int]]) -> dict[int, set[int]]:
    """For each block that can be reached from the first, the blocks on every way to it."""
    first = min(successors)
    reached, stack = {first}, [first]
    while stack:
        for head in successors[stack.pop()]:
            if head not in reached:
                reached.add(head)
                stack.append(head)
    before: dict[int, list[int]] = {block: [] for block in reached}
    for tail in reached:
        for head in successors[tail]:
            before[head].append(tail)
    dominators = {block: set(reached) for block in reached} | {first: {first}}
    changed = True
    while changed:
        changed = False
        for block in sorted(reached - {first}):
            found = set.intersection(*(dominators[tail] for tail in before[block])) | {block}
            changed |= found != dominators[block]
            dominators[block] = found
    return dominators


def _reaching(tail: int, head: int, successors: dict[int, list[int]]) -> set[int]:
    """Blocks from which ``tail`` can be reached without passing ``head``, itself among them."""
    before: dict[int, list[int]] = {}
    for start, heads in successors.items():
        for follower in heads:
            before.setdefault(follower, []).append(start)
    found, stack = {tail}, [tail]
    while stack:
        block = stack.pop()
        if block == head:
            continue
        for earlier in before.get(block, []):
            if earlier not in found:
                found.add(earlier)
                stack.append(earlier)
    return found
