"""bench/sass.py reads machine code: instructions, loops; bench/roofline.py makes clocks of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from m3el_fast.kernels.cases import CompileCase

from bench import roofline, sass
from bench.roofline import Work

# What cuobjdump prints: two nested loops, a wait on a barrier, one whose code lies behind the end, and a slow path.
SASS = """
	code for sm_90a
		Function : kernel
        /*0000*/                   LDC R1, c[0x0][0x28] ;                  /* 0x00000a00ff017b82 */
                                                                           /* 0x000fe20000000800 */
        /*0010*/                   LDGSTS.E.BYPASS.LTC128B.128 [R2], desc[UR4][R4.64], P0 ;  /* 0x0 */
        /*0020*/                   MUFU.RCP R3, R4 ;                       /* 0x0 */
        /*0030*/              @!P1 BRA 0x180 ;                             /* 0x0 */
        /*0040*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R5], R6 ;  /* 0x0 */
        /*0050*/              @!P2 BRA 0x40 ;                              /* 0x0 */
        /*0060*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR40], R24, gsb0 ;  /* 0x0 */
        /*0070*/                   HGMMA.64x32x8.F32.TF32 R24, R4, gdesc[UR40], R24 ;  /* 0x0 */
        /*0080*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R5], R6 ;  /* 0x0 */
        /*0090*/              @!P2 BRA 0x1b0 ;                             /* 0x0 */
        /*00a0*/                   MUFU.EX2 R3, R3 ;                       /* 0x0 */
        /*00b0*/               @P3 FADD R3, R3, R4 ;                       /* 0x0 */
        /*00c0*/                   LDS.64 R6, [R7] ;                       /* 0x0 */
        /*00d0*/                   UISETP.NE.AND UP0, UPT, UR4, URZ, UPT ; /* 0x0 */
        /*00e0*/                   BRA.U UP0, 0xa0 ;                       /* 0x0 */
        /*00f0*/                   FMNMX R3, R3, R4, !PT ;                 /* 0x0 */
        /*0100*/                   BRA 0x120 ;                             /* 0x0 */
        /*0110*/                   CALL.REL.NOINC 0x1e0 ;                  /* 0x0 */
        /*0120*/                   IMAD.MOV.U32 R3, RZ, RZ, R4 ;           /* 0x0 */
        /*0128*/                   MUFU.RSQ R3, R3 ;                       /* 0x0 */
        /*0130*/               @P0 BRA 0x60 ;                              /* 0x0 */
        /*0180*/                   STG.E desc[UR4][R4.64], R3 ;            /* 0x0 */
        /*0190*/                   EXIT ;                                  /* 0x0 */
        /*01b0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R5], R6 ;  /* 0x0 */
        /*01c0*/              @!P2 BRA 0x1b0 ;                             /* 0x0 */
        /*01d0*/                   BRA 0xa0 ;                              /* 0x0 */
        /*01e0*/                   MUFU.RCP R3, R4 ;                       /* 0x0 */
        /*01f0*/                   RET.REL.NODEC R2 0x0 ;                  /* 0x0 */
        /*0200*/                   BRA 0x200 ;                             /* 0x0 */
"""


def _opcodes(body: list[sass.Instruction]) -> list[str]:
    return [one.opcode for one in body if one.opcode not in ("BRA", "SYNCS")]


def test_parse() -> None:
    code = sass.parse(SASS)
    assert len(code) == 29
    assert code[3] == sass.Instruction(0x30, "!P1", "BRA", (), "0x180")
    assert code[1].modifiers == ("E", "BYPASS", "LTC128B", "128")
    assert code[6].operands == "R24, gdesc[UR40], R24, gsb0"
    assert sass.tensor_instructions(code) == {"HGMMA": 2}


def test_loops_nest_and_neither_waiting_nor_slow_paths_are_loops() -> None:
    root = sass.loops(sass.parse(SASS))
    assert _opcodes(root.body) == ["LDC", "LDGSTS", "MUFU", "STG", "EXIT"]
    (outer,) = root.inner
    assert _opcodes(outer.body) == ["HGMMA", "HGMMA", "FMNMX", "IMAD", "MUFU"]
    (inner,) = outer.inner
    assert _opcodes(inner.body) == ["MUFU", "FADD", "LDS", "UISETP"]
    assert root.walk() == [outer, inner]


def test_clocks_of_an_instruction() -> None:
    code = {one.opcode + ".".join(one.modifiers): one for one in sass.parse(SASS)}

    def clocks(name: str) -> dict[str, float]:
        return {pipe: count for pipe, count in roofline.clocks([code[name]], warps=8).items() if count}

    assert clocks("MUFUEX2") == {"mufu": 16, "issue": 2}  # 8 warps of 32 lanes, 16 a clock
    assert clocks("FADD") == {"fma": 2, "issue": 2}
    assert clocks("FMNMX") == {"alu": 4, "issue": 2}
    assert clocks("IMADMOV.U32") == {"fma": 4, "issue": 2}
    assert clocks("LDS64") == {"shared": 16, "issue": 2}
    assert clocks("LDGSTSE.BYPASS.LTC128B.128") == {"shared": 32, "issue": 2}
    assert clocks("UISETPNE.AND") == {"issue": 2}
    # two groups of warps: each 64 x 128 x 16 and its operands, 16 x (64 + 128) values of 2 bytes
    assert clocks("HGMMA64x128x16.F32.BF16") == {"tensor": 128, "operands": 96, "issue": 2}
    # 16 clocks at the peak rate, but no fewer than 18; the left operand is in registers
    assert clocks("HGMMA64x32x8.F32.TF32") == {"tensor": 36, "operands": 16, "issue": 2}


WORK = Work(
    name="planted",
    case=CompileCase(None, "", {"a": "*bf16"}, {}, {}),
    programs=265,
    trips=(10, 50),
    flop=1e9,
    exponentials=265 * 50 * 4 * 32,
    tile_flop={"BF16": 265 * 10 * 2.0 * 64 * 128 * 16, "TF32": 265 * 10 * 2.0 * 64 * 32 * 8},
    padding=0.25,
    loaded=1e6,
    stored=1e6,
    target=2.0,
)


def _binary(shared: int = 64 << 10) -> sass.Binary:
    return sass.Binary(90, 4, 128, 0, shared, 0, sass.parse(SASS))


def test_estimate() -> None:
    found = roofline.estimate(WORK, _binary())
    assert found.programs == 3  # by shared memory
    assert found.exponentials == WORK.exponentials
    # a trip of the outer loop: 64 + 18 clocks of the tensor cores; of the inner one: 4 warps' MUFU beside their LDS.64
    outside = found.phases[0].total(3)
    assert [phase.total(3) for phase in found.phases[1:]] == [10 * 82, 50 * 8]
    assert math.isclose(found.compute, 3 * (outside + 820 + 400) / roofline.CLOCK)  # 265 programs: three to an SM
    assert math.isclose(found.tail, 1 - 265 / (3 * 132))
    assert found.binding == "tensor"
    text = roofline.report(found)
    assert "25% padding" in text
    assert "MISSED" in text  # the limit leaves tails out


def test_single_program_does_not_overlap_tensor_cores_with_the_rest() -> None:
    alone, several = roofline.estimate(WORK, _binary(shared=120 << 10)), roofline.estimate(WORK, _binary())
    assert alone.programs == 1
    assert alone.compute == alone.no_overlap == several.no_overlap > several.compute
    assert alone.phases[1].total(1) == 10 * (82 + 12)  # a product, then issuing what works on it
    assert alone.phases[2].total(1) == 50 * 8  # no product


def test_registers_bound_the_programs_of_an_sm() -> None:
    assert roofline.resident_programs(replace(_binary(0), registers=255)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trips": (10,)}, "planted: expected 1 loops in the machine code, got 2"),
        ({"trips": (11, 50)}, "FLOP in"),
        ({"tile_flop": {"BF16": WORK.tile_flop["BF16"]}}, "expected 0 FLOP in TF32"),
    ],
)
def test_sizes_that_do_not_fit_the_machine_code_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roofline.estimate(Work(**(vars(WORK) | change)), _binary())
