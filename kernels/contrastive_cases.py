"""What CI compiles of the contrastive losses: the forms in fp32, which models train in, and ICL in half types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .cases import CompileCase
from .contrastive import (
    ROWS,
    contrastive_combine_kernel,
    contrastive_fwd_kernel,
    contrastive_norm_kernel,
    norm_depth,
)
from .contrastive_backward import (
    coefficient_dtype,
    contrastive_coefficient_kernel,
    contrastive_finish_kernel,
    contrastive_sum_kernel,
    finish_tile,
    sum_tile,
)
from .contrastive_tiles import ROW_OPTIONS, Terms, precision_of, tile_of

_POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_ICL = Terms(1 / 0.03, 1.0, 1 / 0.03, 0.8, False, True)
_FORMS = {
    "icl": (_ICL, None),
    "icl, ids": (_ICL, "*i32"),
    "icl, mask": (_ICL, "*u8"),
    "infonce": (Terms(1.0, 1.0, None, 1.0, False, False), None),
}
# bytes a thread, at a tile's end, not in the loop over d: sm_100 holds a tile by rows, whose sums over rows need a copy
_SPILLS = {"icl": 32, "icl, ids": 816, "icl, mask": 48, "infonce": 512}


def _case(
    kernel: Any,
    name: str,
    pointers: dict[str, str],
    integers: str,
    constexprs: dict[str, Any],
    floats: str = "",
    options: dict[str, int] | None = None,
    **rest: Any,
) -> CompileCase:
    """``constexprs`` may be pointers that are None."""
    signature = {**pointers, **dict.fromkeys(integers.split(), "i32"), **dict.fromkeys(floats.split(), "fp32")}
    aligned = tuple(n for n in ("B", "d") if n in integers.split())
    return CompileCase(kernel, name, signature, constexprs, options or ROW_OPTIONS, aligned, **rest)


def _logits(kernel: Any, form: str, name: str, batch: int, d: int, dtype: torch.dtype, **extra: str) -> CompileCase:
    """A case of one of the two kernels that compute logits; ``extra``: their own arguments."""
    terms, duplicates = _FORMS[form]
    tile = tile_of(batch, d, dtype, duplicates == "*u8")
    pointers = {"entity": _POINTER[dtype], "mention": _POINTER[dtype]}
    constexprs: dict[str, Any] = {
        "SAME": terms.same_scale is not None,
        "BOUNDED": terms.bound() is not None,
        "BT": tile.size,
        "BK": tile.depth,
        "PRECISION": precision_of(dtype),
    }
    optional = {"duplicates": duplicates, "inverse": "*fp32" if terms.normalise else None}
    if kernel is contrastive_fwd_kernel:
        optional["top"] = "*fp32" if terms.bound() is None else None
    for argument, kind in optional.items():
        (constexprs if kind is None else pointers)[argument] = kind
    scalars = " ".join([*terms.scalars(), "bound"])
    integers = "B d first last " + extra.pop("integers")
    floats = f"{scalars} {extra.pop('floats', '')}"
    case = _case(kernel, f"{form}, {name}", {**pointers, **extra}, integers, constexprs, floats, tile.options)
    return case._replace(spill_bytes=_SPILLS[form])


def _cases(batch: int, d: int, dtype: torch.dtype, forms: list[str]) -> Iterator[CompileCase]:
    name, x = f"{str(dtype).removeprefix('torch.')}, B = {batch}, d = {d}", _POINTER[dtype]
    sides, c = {"entity": x, "mention": x}, _POINTER[coefficient_dtype(dtype)]
    yield _case(
        contrastive_norm_kernel,
        name,
        {**sides, "inverse": "*fp32"},
        "B d",
        {"ROWS": ROWS, "BK": norm_depth(d)},
        tensor_cores=False,
    )
    arguments = {"floats": "self_logit", "integers": "groups G", "total": "*fp32", "positive": "*fp32"}
    for form in forms:
        yield _logits(contrastive_fwd_kernel, form, name, batch, d, dtype, **arguments)
        yield _logits(
            contrastive_coefficient_kernel,
            form,
            name,
            batch,
            d,
            dtype,
            integers="begin",
            lse="*fp32",
            coefficient=c,
        )
    for same, masked in sorted({(_FORMS[form][0].same_scale is not None, _FORMS[form][1] == "*u8") for form in forms}):
        tile = tile_of(batch, d, dtype, masked)
        width, depth = sum_tile(tile.size, d, dtype)
        yield _case(
            contrastive_sum_kernel,
            name + ("" if same else ", infonce") + (", mask" if masked else ""),
            {**sides, "coefficient": c, "partial": "*fp32"},
            "B d first last begin",
            {"SAME": same, "BT": tile.size, "BD": width, "BK": depth, "PRECISION": precision_of(dtype)},
            options=tile.options,
            spill_bytes=8,
        )
    tile, (lines, across) = tile_of(batch, d, dtype, False), finish_tile(d)
    for normalise in {_FORMS[form][0].normalise for form in forms}:
        inverse: dict[str, Any] = {"inverse": "*fp32" if normalise else None}
        constexprs = {"BT": tile.size, "ROWS": lines, "BD": across, **({} if normalise else inverse)}
        yield _case(
            contrastive_finish_kernel,
            name + (", normalised" if normalise else ""),
            {
                **sides,
                "gradient": "*fp32",
                "partial": "*fp32",
                "d_entity": x,
                "d_mention": x,
                **(inverse if normalise else {}),
            },
            "B d begin parts",
            constexprs,
            "factor",
            tensor_cores=False,
        )


def _combine(bounded: bool) -> CompileCase:
    pointers = dict.fromkeys(["total", "positive", "lse", "loss"] + ([] if bounded else ["top"]), "*fp32")
    constexprs: dict[str, Any] = {"BOUNDED": bounded, "ROWS": ROWS, **({"top": None} if bounded else {})}
    name = "bounded" if bounded else "maxima"
    return _case(
        contrastive_combine_kernel, name, pointers, "B first last places", constexprs, "bound", tensor_cores=False
    )


_LARGE = 32768, 512
COMPILE_CASES = [
    *_cases(128, 96, torch.float32, ["icl"]),
    *_cases(*_LARGE, torch.float32, list(_FORMS)),  # what models train in
    *_cases(*_LARGE, torch.bfloat16, ["icl"]),
    # of fp16 only what has other tiles or types than bf16's: coefficients are fp32
    *(
        case
        for case in _cases(*_LARGE, torch.float16, ["icl"])
        if case.kernel in (contrastive_coefficient_kernel, contrastive_sum_kernel)
    ),
    _combine(True),
    _combine(False),
]
