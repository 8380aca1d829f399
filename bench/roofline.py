"""What the kernels should take on an H100, from their machine code: ``python -m bench.roofline [NAME...]``.

No GPU is needed and none was used: every kernel is compiled for sm_90, the instructions of each loop of its SASS are
counted by pipe, and the sizes of the launch (``bench/works.py``) say how often each loop runs. The inputs that are not
read from SASS are those sizes, the bytes that tiles load, and the chip's rates below. Assumptions:

- H100 SXM: 132 SMs at 1.755 GHz; per clock and SM 4 warp instructions issue, 128 lanes of FADD / FMUL / FFMA, 64 of
  IMAD and of other integer, comparison, minimum, maximum and conversion instructions, 16 of MUFU (exponential,
  reciprocal, root) and 32 of SHFL. Shared memory and L1 move 128 bytes: SHFL, loads and stores, and the operands that
  HGMMA reads there share them. Tensor cores: 4,096 FLOP in bf16 and fp16, 2,048 in tf32; an HGMMA takes 18 clocks at
  least, however few its columns; HMMA reaches 62% of HGMMA's rate. L2 delivers 5.5 TB/s, HBM 3.35 TB/s.
- Within a loop the busiest pipe sets the pace where an SM holds two programs or more: one has the tensor cores while
  the other works on its logits. In a single program the products and what is made of them take turns (in loops that
  hold both, those with MUFU instructions); only loops that multiply and load overlap. Other latencies and barriers are
  hidden. Loops and the code around them do not overlap. "No overlap" has every program alone.
- Predicated instructions count as executed; slow paths behind calls do not; bank conflicts are not counted, nor clocks
  below 1.755 GHz, nor launches.
- Every SM gets the same number of programs, rounded up: the tail.
- The limit is the largest of three: the exponentials that cannot be avoided at the rate of MUFU, the FLOP of the
  products at the tensor cores' rate for the inputs' dtype (fp32: three tf32 products), and every input and output once
  over HBM.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import sass

if TYPE_CHECKING:
    from m3el_fast.kernels.cases import CompileCase

SMS, CLOCK = 132, 1.755e9
L2_BYTES, HBM_BYTES = 5.5e12, 3.35e12  # a second
TENSOR_FLOP = {"BF16": 4096, "F16": 4096, "TF32": 2048}  # a clock and SM
SHARED_CLOCK_BYTES = 128
_HGMMA_CLOCKS, _HMMA_SHARE = 18, 0.62
_REGISTERS, _SHARED, _WARPS, _PROGRAMS = 65536, 228 << 10, 64, 32  # that one SM holds

PIPES = ("tensor", "operands", "mufu", "fma", "alu", "shared", "issue")  # operands: that HGMMA reads, through shared
_MUFU = {"MUFU", "F2F", "F2I", "FRND", "I2F", "FLO", "POPC", "BREV"}
_FMA = {"FFMA", "FADD", "FMUL", "FFMA32I", "FADD32I", "FMUL32I", "HFMA2", "HADD2", "HMUL2"}
_MEMORY = {"LDS", "STS", "LDSM", "STSM", "LDG", "STG", "LDGSTS", "LDL", "STL", "LD", "ST", "ATOM", "ATOMG", "RED"}
_ISSUE_ONLY = {
    *("BRA", "BRX", "BAR", "BSSY", "BSYNC", "CALL", "CCTL", "DEPBAR", "ERRBAR", "EXIT", "FENCE", "LDC", "LDGDEPBAR"),
    *("MEMBAR", "NANOSLEEP", "NOP", "R2UR", "RET", "S2R", "S2UR", "SYNCS", "WARPGROUP", "WARPSYNC", "YIELD"),
}


@dataclass(frozen=True)
class Work:
    """One launch at given sizes.

    Attributes:
        name: of the row; case: what is compiled.
        programs: of the grid.
        trips: how often a program runs the body of each loop: loops by address, an outer one before its inner ones.
        flop: of the products that cannot be avoided, each counted once; exponentials: likewise.
        tile_flop: that all programs' tiles hold, padding and recomputation included, by the dtype that SASS names; each
            product counts once.
        padding: share of the tiles' elements that are padding.
        loaded: bytes that all programs read from L2 and write; stored: of each input and output, once.
        moved: bytes that go over HBM by design, where they are more than ``stored``.
        target: largest modelled time in units of the limit, None = none is set.
    """

    name: str
    case: CompileCase
    programs: int
    trips: tuple[float, ...]
    flop: float
    exponentials: float
    tile_flop: Mapping[str, float]
    padding: float
    loaded: float
    stored: float
    moved: float = 0.0
    target: float | None = None

    @property
    def dtype(self) -> str:
        """Of the products, as SASS names it."""
        return {"bf16": "BF16", "fp16": "F16"}.get(_widest(self.case), "TF32")

    def limits(self) -> dict[str, float]:
        """Least seconds by what cannot be avoided."""
        return limits(self.exponentials, self.flop, self.stored, self.dtype)


def limits(exponentials: float, flop: float, stored: float, dtype: str) -> dict[str, float]:
    """Least seconds for exponentials, FLOP of products with inputs of ``dtype`` (as SASS names it), and bytes."""
    copies = 3 if dtype == "TF32" else 1
    return {
        "exp": exponentials / (16 * SMS * CLOCK),
        "FLOP": copies * flop / (TENSOR_FLOP[dtype] * SMS * CLOCK),
        "bytes": stored / HBM_BYTES,
    }


def _widest(case: CompileCase) -> str:
    """Type of the first pointer argument: the kernels' inputs come first."""
    return next(kind[1:] for kind in case.signature.values() if kind.startswith("*"))


@dataclass(frozen=True)
class Phase:
    """A loop of a program, or all code outside of loops.

    Attributes:
        trips: of its body, in one program; clocks: of an SM, by pipe, for one trip of all the program's warps.
    """

    trips: float
    clocks: dict[str, float]

    def busy(self) -> dict[str, float]:
        """Clocks of one trip on each pipe; the operands that HGMMA reads are shared memory's."""
        busy = {**self.clocks, "shared": self.clocks["shared"] + self.clocks["operands"]}
        del busy["operands"]
        return busy

    @property
    def binding(self) -> str:
        busy = self.busy()
        return max(busy, key=lambda pipe: busy[pipe])

    def total(self, programs: int) -> float:
        """Clocks of all trips where an SM holds so many programs."""
        products = max(self.clocks["tensor"], self.clocks["operands"])
        rest = max(clocks for pipe, clocks in self.clocks.items() if pipe not in ("tensor", "operands"))
        turns = products + rest if self.clocks["mufu"] else 0.0
        return self.trips * max(*self.busy().values(), turns / programs)


@dataclass(frozen=True)
class Estimate:
    """A modelled launch, in seconds.

    Attributes:
        phases: outside of loops first, then loops by address; programs: that an SM holds.
        compute: all programs on all SMs, with the tail; tail: share of it that the last, incomplete round adds.
        no_overlap: ``compute`` where the tensor cores and all else take turns.
        l2, hbm: of the bytes; exponentials, flop: executed, on MUFU and by tensor cores.
    """

    work: Work
    binary: sass.Binary
    phases: list[Phase]
    programs: int
    compute: float
    tail: float
    no_overlap: float
    l2: float
    hbm: float
    exponentials: float
    flop: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.l2, self.hbm)

    @property
    def limit(self) -> float:
        return max(self.work.limits().values())

    @property
    def ratio(self) -> float:
        return self.seconds / self.limit

    @property
    def binding(self) -> str:
        if self.seconds > self.compute:
            return "L2" if self.l2 >= self.hbm else "HBM"
        return max(self.phases, key=lambda phase: phase.total(self.programs)).binding


def estimate(work: Work, binary: sass.Binary) -> Estimate:
    """Model ``work`` from its machine code for sm_90.

    Raises:
        ValueError: the code has other loops than ``work.trips`` says, or its tensor-core instructions do not add up to
            ``work.tile_flop``.
    """
    root = sass.loops(binary.code)
    bodies = [loop.body for loop in root.walk()]
    if len(bodies) != len(work.trips):
        raise ValueError(f"{work.name}: expected {len(work.trips)} loops in the machine code, got {len(bodies)}")
    parts = [(1.0, root.body), *zip(work.trips, bodies, strict=True)]
    flop: Counter[str] = Counter()
    for trips, body in parts:
        for dtype, count in tensor_flop(body, binary.warps).items():
            flop[dtype] += work.programs * trips * count
    for dtype in {*flop, *work.tile_flop}:
        once = work.tile_flop.get(dtype, 0.0)
        # tf32x3 is three products of TF32, of which the compiler may repeat two; Triton 3.6 repeats small products
        copies = flop[dtype] / once if once else math.inf
        if not 1 - 1e-6 < copies < (5.001 if dtype == "TF32" else 1 + 1e-6):
            raise ValueError(f"{work.name}: expected {once:.6g} FLOP in {dtype}, got {flop[dtype]:.6g}")
    phases = [Phase(trips, clocks(body, binary.warps)) for trips, body in parts]
    rounds, programs = math.ceil(work.programs / SMS), resident_programs(binary)
    exponentials = sum(trips * sum(i.opcode == "MUFU" and "EX2" in i.modifiers for i in body) for trips, body in parts)
    return Estimate(
        work,
        binary,
        phases,
        programs,
        rounds * sum(phase.total(programs) for phase in phases) / CLOCK,
        1 - work.programs / (SMS * rounds),
        rounds * sum(phase.total(1) for phase in phases) / CLOCK,
        work.loaded / L2_BYTES,
        max(work.stored, work.moved) / HBM_BYTES,
        work.programs * binary.warps * 32 * exponentials,
        sum(flop.values()),
    )


def resident_programs(binary: sass.Binary) -> int:
    """Programs that an SM holds at a time."""
    registers = 256 * math.ceil(binary.registers * 32 / 256) * binary.warps  # a warp gets them in steps of 256
    shared = binary.shared + 1024  # the system's own
    return min(_REGISTERS // registers, _SHARED // shared, _WARPS // binary.warps, _PROGRAMS)


def clocks(body: Iterable[sass.Instruction], warps: int) -> dict[str, float]:
    """Clocks of an SM by pipe for one run of ``body`` by ``warps`` warps."""
    total = dict.fromkeys(PIPES, 0.0)
    for one in body:
        for pipe, cost in _cost(one).items():
            total[pipe] += warps * cost
    return total


def _cost(one: sass.Instruction) -> dict[str, float]:
    """Clocks of one warp's instruction."""
    issue = {"issue": 0.25}
    if one.opcode in ("HGMMA", "HMMA"):
        return issue | _tensor_cost(one)
    if one.opcode in _MUFU:
        return issue | {"mufu": 2.0}
    if one.opcode in _FMA:
        return issue | {"fma": 0.25}
    if one.opcode == "IMAD":
        return issue | {"fma": 0.5}
    if one.opcode == "SHFL":
        return issue | {"shared": 1.0}
    if one.opcode in _MEMORY:
        return issue | {"shared": _words(one)}
    if one.opcode in _ISSUE_ONLY or one.opcode.startswith("U"):
        return issue
    return issue | {"alu": 0.5}


def _words(one: sass.Instruction) -> float:
    """4-byte words a lane moves: clocks of a warp at 128 bytes each."""
    if one.opcode in ("LDSM", "STSM"):  # 8 x 8 matrices of 2 bytes, 128 bytes each
        return float(next((m for m in one.modifiers if m in ("2", "4")), 1))
    return 4.0 if "128" in one.modifiers else 2.0 if "64" in one.modifiers else 1.0


def _tensor_cost(one: sass.Instruction) -> dict[str, float]:
    m, n, k = _shape(one)
    rate = TENSOR_FLOP[one.modifiers[-1]]
    if one.opcode == "HMMA":
        return {"tensor": 2 * m * n * k / (rate * _HMMA_SHARE)}
    size = 4 if one.modifiers[-1] == "TF32" else 2
    from_shared = one.operands.split(", ")[1].startswith("gdesc")  # the left operand, too; else it is in registers
    read = (n + (m if from_shared else 0)) * k * size
    # one instruction of each of the four warps of a group is one product
    return {"tensor": max(_HGMMA_CLOCKS, 2 * m * n * k / rate) / 4, "operands": read / SHARED_CLOCK_BYTES / 4}


_HMMA_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4)}


def _shape(one: sass.Instruction) -> tuple[int, int, int]:
    text = one.modifiers[0]
    if one.opcode == "HMMA":
        return _HMMA_SHAPES[text]
    m, n, k = (int(size) for size in text.split("x"))
    return m, n, k


def tensor_flop(body: Iterable[sass.Instruction], warps: int) -> dict[str, float]:
    """FLOP by dtype of the tensor-core instructions in one run of ``body`` by ``warps`` warps."""
    total: dict[str, float] = {}
    for one in body:
        if one.opcode in ("HGMMA", "HMMA"):
            m, n, k = _shape(one)
            count = 2.0 * m * n * k * warps / (4 if one.opcode == "HGMMA" else 1)
            total[one.modifiers[-1]] = total.get(one.modifiers[-1], 0.0) + count
    return total


# ----------------------------------------------------------------------------------------------------------------------
# The table


def report(found: Estimate) -> str:
    """A paragraph on one launch."""
    work, limits = found.work, found.work.limits()
    missed = work.target is not None and found.ratio > work.target
    goal = "" if work.target is None else f", goal {work.target:g}: {'MISSED' if missed else 'met'}"
    executed = found.exponentials / work.exponentials if work.exponentials else 0.0
    lines = [
        f"{work.name}",
        f"    counted: {work.stored / 1e9:.3g} GB, {work.flop:.3g} FLOP, {work.exponentials:.3g} exponentials; tiles: "
        f"{100 * work.padding:.0f}% padding, FLOP x {found.flop / work.flop:.2f}"
        + (f", exponentials on MUFU x {executed:.2f}" if executed else ""),
        f"    limit {_time(found.limit)} ({', '.join(f'{name} {_time(t)}' for name, t in limits.items())})",
        f"    modelled {_time(found.seconds)} = {found.ratio:.2f} x the limit{goal}; no overlap "
        f"{_time(max(found.no_overlap, found.l2, found.hbm))}; binds: {found.binding}; L2 {_time(found.l2)}, "
        f"HBM {_time(found.hbm)}; tail {100 * found.tail:.1f}%",
        f"    {found.programs} programs of {found.binary.warps} warps an SM ({found.binary.registers} "
        f"registers, {found.binary.shared:,} bytes of shared memory, {found.binary.stack} bytes of spills)",
    ]
    whole = sum(phase.total(found.programs) for phase in found.phases)
    for number, phase in enumerate(found.phases):
        place = f"loop {number} x {phase.trips:g}" if number else "outside loops"
        share = phase.total(found.programs) / whole
        pipes = sorted(phase.busy().items(), key=lambda item: -item[1])
        clocks_of = ", ".join(f"{pipe} {count:,.0f}" for pipe, count in pipes)
        lines.append(f"    {place}: {100 * share:.0f}% of the time; clocks a trip: {clocks_of}")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds >= 0.1:
        return f"{seconds:.3f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} us"


def opcodes(work: Work) -> str:
    """Instructions of each phase by opcode: what to look at when a pipe binds that should not."""
    root = sass.loops(sass.compile_case(work.case, 90).code)
    bodies = [root.body, *(loop.body for loop in root.walk())]
    counts = [Counter(one.opcode for one in body).most_common() for body in bodies]
    return "\n".join(
        f"    {number}: " + " ".join(f"{opcode}:{count}" for opcode, count in phase)
        for number, phase in enumerate(counts)
    )


def main() -> None:
    from bench.works import works

    wanted = [name for name in sys.argv[1:] if not name.startswith("-")]
    missed = []
    for work in works():
        if wanted and not any(name in work.name for name in wanted):
            continue
        found = estimate(work, sass.compile_case(work.case, 90))
        print(report(found), *([opcodes(work)] if "--opcodes" in sys.argv else []), sep="\n", flush=True)
        if work.target is not None and found.ratio > work.target:
            missed.append(work.name)
    if missed:
        sys.exit(f"more than the goal: {', '.join(missed)}")


if __name__ == "__main__":
    main()
