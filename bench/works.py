"""The launches that ``bench/roofline.py`` models: kernels at the paper's sizes, counted from their launchers' tiles."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from m3el_fast.kernels import (
    contrastive,
    contrastive_backward,
    contrastive_cases,
    contrastive_tiles,
    cross_modal,
    dual,
    g2l,
    g2l_backward,
    g2l_tiles,
)
from m3el_fast.kernels.cases import CompileCase

from bench.roofline import Work
from bench.scales import WIKIMEL_ENTITIES, WIKIMEL_MENTIONS

D = 96
IMAGES = 67_085  # distinct images of WikiMEL's entities: 61% of them, and the one that the others share
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
_SASS = {"bf16": "BF16", "fp16": "F16", "fp32": "TF32"}
_TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def works() -> Iterator[Work]:
    """All of them. The goal is that of scoring, which runs in bf16."""
    for dtype in ("bf16", "fp32"):
        target = 2.0 if dtype == "bf16" else None
        yield g2l_forward("text", dtype, 40, 40, WIKIMEL_MENTIONS, WIKIMEL_ENTITIES, target)
        yield g2l_forward("image", dtype, 50, 50, WIKIMEL_MENTIONS, IMAGES, target)
    yield from g2l_backward_kernels("text", 40, 1_024)
    yield from g2l_backward_kernels("image", 50, 1_024)
    for dtype in ("bf16", "fp32"):
        yield from icl(dtype, 32_768, 512)
    yield cross_modal_forward("fp32", WIKIMEL_ENTITIES, 50)
    yield dual_forward("fp32", WIKIMEL_MENTIONS, IMAGES)
    yield dual_forward("bf16", WIKIMEL_MENTIONS, IMAGES)


def g2l_forward(
    modality: str, dtype: str, rows: int, columns: int, mentions: int, entities: int, target: float | None = None
) -> Work:
    """``g2l_scores`` of all pairs of mentions of ``columns`` tokens and entities of ``rows`` tokens."""
    size = _BYTES[dtype]
    tiles = g2l_tiles.forward_tiles(columns, D, size).constexprs
    case = _case(g2l, "g2l_fwd_kernel", dtype, HAS_ROWS=False, WEIGHTS=False, PAIRS=False, **tiles)
    tile_rows, tile_mentions = tiles["ROWS"], tiles["MB"]
    programs = _ceil(entities, tile_rows) * _ceil(mentions, tile_mentions)
    padded_columns, padded_d = tiles["N1"] + tiles["N2"], tiles["D1"] + tiles["D2"]
    pairs, tile_pairs = mentions * entities, programs * tile_rows * tile_mentions
    logits = 2.0 * tile_pairs * rows * padded_columns * padded_d
    context = 2.0 * tile_pairs * (tiles["N1"] + _summed(tiles["N2"])) * D
    flop = {_SASS[dtype]: logits}
    flop["TF32"] = flop.get("TF32", 0.0) + context
    entity = rows * D * size + D * 4 + 4  # query; gain and shift
    mention = columns * D * (size + 4)  # key; centred
    return Work(
        f"g2l_scores forward, {modality}, {dtype}, {mentions:,} x {entities:,}",
        case,
        programs,
        (rows, _ceil(D, 32)),
        2.0 * pairs * (rows * columns * D + columns * D),
        float(pairs * rows * columns),
        flop,
        1 - pairs * columns / (tile_pairs * padded_columns),
        programs * (tile_rows * entity + tile_mentions * mention) + 4.0 * pairs,
        entities * entity + mentions * mention + 4.0 * pairs,
        target=target,
    )


def g2l_backward_kernels(modality: str, length: int, batch: int) -> Iterator[Work]:
    """The two kernels that make gradients of query and key of in-batch ``g2l_scores``, bf16; the batched products
    before them are a BLAS's."""
    tiles = g2l_tiles.backward_tiles(length, D, False).constexprs
    rows, mentions, padded = tiles["ROWS"], tiles["MB"], tiles["N1"] + tiles["N2"]
    groups, row_tiles = _ceil(batch, mentions), _ceil(batch * length, rows)
    strips = min(row_tiles, max(1, 512 // groups))
    visited = float(groups * row_tiles)  # tiles of logits
    logits = float(batch * length) ** 2
    work = partial(
        Work,
        flop=4.0 * logits * D,  # the logits again, and the gradient
        exponentials=logits,
        tile_flop={"BF16": 4.0 * visited * rows * mentions * padded * (tiles["D1"] + tiles["D2"])},
        padding=1 - logits / (visited * rows * mentions * padded),
        # slopes [M, E, Lm] fp32: a tile has rows of 1 + rows / length entities
        loaded=visited * ((rows + length) * mentions * 4 + (rows + mentions * length) * D * 2),
        stored=2.0 * batch * length * D * 2 + 4.0 * batch * batch * length,
    )
    for kernel, programs, trips in (
        ("g2l_bwd_query_kernel", row_tiles, groups),
        ("g2l_bwd_key_kernel", groups * strips, row_tiles / strips),
    ):
        case = _case(g2l_backward, kernel, "bf16", HAS_QUERY_MASK=False, HAS_KEY_MASK=False, **tiles)
        yield work(f"{kernel}, {modality}, bf16, B = {batch:,}", case, programs, (trips,))


def icl(dtype: str, batch: int, d: int) -> Iterator[Work]:
    """``icl_loss``: the forward kernel, and backward the coefficients of strips of rows and their sums over columns."""
    size, kind = _BYTES[dtype], _TORCH[dtype]
    tile = contrastive_tiles.tile_of(batch, d, kind, masked=False)
    tiles, area, steps = _ceil(batch, tile.size), float(tile.size**2), _ceil(d, tile.depth)
    chosen = {"BT": tile.size, "BK": tile.depth, "SAME": True, "BOUNDED": True, "duplicates": None}
    features = 2.0 * batch * d * size
    products = {_SASS[dtype]: 2.0 * area * steps * tile.depth}
    name = f"{dtype}, B = {batch:,}, d = {d}"

    g = _ceil(tiles, contrastive._BLOCKS)
    groups = _ceil(tiles, g)
    programs = (2 * groups + 1) * groups
    visited = programs * g * g
    yield Work(
        f"icl_loss forward, {name}",
        _case(contrastive_cases, "contrastive_fwd_kernel", dtype, **chosen),
        programs,
        (g, g * g, g * g * steps),
        4.0 * batch**2 * d,
        2.0 * batch**2,
        {key: visited * count for key, count in products.items()},
        1 - 2.0 * batch**2 / (visited * area),
        visited * 2.0 * tile.size * d * size,
        features,
    )

    visited, side = 4 * tiles * tiles, 2 * tiles * tile.size
    coefficient = _coefficient_bytes(dtype)
    yield Work(
        f"icl_loss backward, coefficients, {name}",
        _case(contrastive_cases, "contrastive_coefficient_kernel", dtype, **chosen),
        visited,
        (steps,),
        4.0 * batch**2 * d,
        2.0 * batch**2,
        {key: visited * count for key, count in products.items()},
        1 - 4.0 * batch**2 / (visited * area),
        visited * (2.0 * tile.size * d * size + area * coefficient),
        features,
        float(side * side * coefficient),  # a strip of them is larger than L2
    )

    width, depth = contrastive_backward.sum_tile(tile.size, d, kind)
    columns, strip = _ceil(d, width), min(contrastive_backward._STRIP // tile.size, 2 * tiles)
    parts = min(_ceil(contrastive_backward._PROGRAMS, strip * columns), tiles)
    programs = columns * 2 * tiles * parts
    turns = side / depth / parts
    flop = 2.0 * side * side * columns * width
    yield Work(
        f"icl_loss backward, sums, {name}",
        _case(contrastive_cases, "contrastive_sum_kernel", dtype, SAME=True, BT=tile.size, BD=width, BK=depth),
        programs,
        (2, turns),
        8.0 * batch**2 * d,
        0.0,
        {_SASS[dtype]: flop},
        1 - 4.0 * batch**2 * d / (side * side * columns * width),
        side * side * columns * coefficient + programs * turns * depth * width * size,
        features * 2,
        float(side * side * coefficient),
    )


def _coefficient_bytes(dtype: str) -> int:
    return contrastive_backward.coefficient_dtype(_TORCH[dtype]).itemsize


def cross_modal_forward(dtype: str, items: int, rows: int) -> Work:
    """``cross_modal_context`` in its bidirectional form of ``items`` items with ``rows`` local rows."""
    size = _BYTES[dtype]
    tiles = cross_modal.forward_tiles(items, rows, D, _TORCH[dtype]).constexprs
    case = _case(cross_modal, "cross_modal_fwd_kernel", dtype, FUSION=False, **tiles)
    programs, width = _ceil(items, tiles["ITEMS"]), tiles["D"]
    steps = _ceil(D, 32)  # of a product with a weight
    stored = items * (rows + 2.0) * D * size
    return Work(
        f"cross_modal_context forward, {dtype}, {items:,} items of {rows} rows",
        case,
        programs,
        (steps, _ceil(rows, tiles["ROWS"]), steps, steps),
        items * 2.0 * (3 * D * D + 2 * rows * D),
        float(items * rows),
        {"TF32": programs * 3 * 2.0 * tiles["ITEMS"] * width * steps * 32},
        1 - D / width,
        stored + programs * 3.0 * D * D * size,
        stored,
    )


def dual_forward(dtype: str, sources: int, targets: int) -> Work:
    """``dual_scores`` of packed rows: five products of d, and arithmetic on their results."""
    size = _BYTES[dtype]
    tiles = dual.forward_tiles(_TORCH[dtype]).constexprs
    tile_s, tile_t, depth = tiles["BS"], tiles["BT"], tiles["BLOCK"]
    programs, steps = _ceil(sources, tile_s) * _ceil(targets, tile_t), _ceil(D, depth)
    pairs, row = float(sources * targets), (3 * D + 7) * size
    return Work(
        f"dual_scores forward, {dtype}, {sources:,} x {targets:,}",
        _case(dual, "dual_fwd_kernel", dtype, **tiles),
        programs,
        (steps,),
        10.0 * pairs * D,
        0.0,
        {_SASS[dtype]: programs * 10.0 * tile_s * tile_t * steps * depth},
        1 - pairs / (programs * tile_s * tile_t),
        programs * (tile_s + tile_t) * row + size * pairs,
        (sources + targets) * row + size * pairs,
    )


def _summed(n2: int) -> int:
    """Columns over which the second product of the context sums: 16 at least."""
    return max(16, n2) if n2 else 0


def _case(module: ModuleType, kernel: str, dtype: str, **constexprs: Any) -> CompileCase:
    """The case of ``module`` that compiles ``kernel`` for inputs of ``dtype`` and these constexprs.

    Raises:
        ValueError: there is none: CI does not compile what the launcher would run.
    """
    for case in module.COMPILE_CASES:
        inputs = next(kind for kind in case.signature.values() if kind.startswith("*"))
        # None stands for an argument that is not there
        same = all(case.constexprs.get(name) == value for name, value in constexprs.items())
        if case.kernel.__name__ == kernel and inputs == f"*{dtype}" and same:
            found: CompileCase = case
            return found
    raise ValueError(f"{module.__name__}: no case compiles {kernel} for {dtype} with {constexprs}")


def _ceil(n: int, size: int) -> int:
    return -(-n // size)
