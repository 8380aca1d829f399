"""Configurations of kernels, and what a module asks CI to compile, without a GPU, for every architecture."""

from __future__ import annotations

from typing import Any, NamedTuple


class Tiles(NamedTuple):
    """The configuration of a kernel: constexprs and launch options."""

    constexprs: dict[str, Any]
    options: dict[str, int]


def launch_options(warps: int, stages: int) -> dict[str, int]:
    """Options of a launch: a multiply and an add become one instruction, which Triton 3.10 no longer does unasked."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


class CompileCase(NamedTuple):
    """One specialisation of a kernel that its launcher may choose.

    Attributes:
        kernel: the ``@triton.jit`` function.
        name: of the configuration, for the table: op, dtype, sizes.
        signature: Triton type of each argument that is no constexpr: ``"*bf16"``, ``"i32"``, ``"fp32"``.
        constexprs: value of each argument that is one.
        options: those of :func:`launch_options`.
        aligned: integer arguments that are multiples of 16 at this configuration's sizes (as pointers always are).
        tensor_cores: whether its products must become tensor-core instructions.
        wgmma: whether, on sm_90, they must be a warpgroup's (HGMMA), as those with 64 rows or more can be.
        hmma: whether some of them may be a warp's (HMMA) there all the same: fewer rows, or a batch of small matrices.
        spill_bytes: registers that may spill to local memory, in bytes a thread.
    """

    kernel: Any
    name: str
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, int]
    aligned: tuple[str, ...] = ()
    tensor_cores: bool = True
    spill_bytes: int = 0
    wgmma: bool = True
    hmma: bool = False
