"""Corrects bf16 in Triton's interpreter, which multiplies its bit patterns as integers and truncates casts to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def _to_fp32(data: np.ndarray) -> np.ndarray:
    return (data.astype(np.uint32) << 16).view(np.float32)


def _to_bf16(data: np.ndarray) -> np.ndarray:
    """Round to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), rounded)


def correct_bf16() -> None:
    """Patch the interpreter, once a process."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "corrects_bf16", False):
        return
    handle = interpreter.TensorHandle
    dot, convert, truncate = builder.create_dot, builder.create_fp_to_fp, builder.create_fp_trunc
    extend = builder.create_fp_ext

    def wide(x: Any) -> Any:
        return handle(_to_fp32(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x

    def cast(original: Any) -> Any:
        def run(self: Any, src: Any, dst_type: Any, *rest: Any) -> Any:
            source, target = src.dtype.scalar, dst_type.scalar
            if source == tl.bfloat16 and target != tl.bfloat16:
                src = handle(_to_fp32(src.data), tl.float32)
                return src if target == tl.float32 else original(self, src, dst_type, *rest)
            if target == tl.bfloat16:
                return handle(_to_bf16(src.data.astype(np.float32)), tl.bfloat16)
            return original(self, src, dst_type, *rest)

        return run

    builder.create_dot = lambda self, a, b, *rest: dot(self, wide(a), wide(b), *rest)
    builder.create_fp_to_fp, builder.create_fp_trunc = cast(convert), cast(truncate)
    builder.create_fp_ext = cast(extend)
    builder.corrects_bf16 = True
