"""Global-to-local scores (spec sections 3.1 and 5.2): all pairs of a block, or a list of pairs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from m3el_fast.ops import gpu, reference, triton_g2l
from m3el_fast.ops.backends import Backend, choose
from m3el_fast.ops.checks import expect, expect_rows, shape
from m3el_fast.ops.native import needs_gradient, not_cpu_fp32
from m3el_fast.ops.reference import LayerNormWeights

Pooling = Literal["mean", "max", "soft"]
Precision = Literal["fp32", "bf16"]

# Largest number of attention weights that one block of the reference holds when nothing has to be kept for a backward
# pass: 2^20 fp32 values are 4 MB, about what stays in a core's caches.
_BLOCK_WEIGHTS = 1 << 20
_MOST_COLUMNS = 1024


def g2l_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm: LayerNormWeights,
    *,
    pooling: Pooling = "mean",
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    rows: Tensor | None = None,
    precision: Precision = "fp32",
    backend: Backend = "auto",
) -> Tensor:
    """Global-to-local scores of all pairs (spec sections 3.1 and 5.2, M3EL Eq. 5).

    Args:
        query: [U, Le, d], Wq of the entities' local features; gate: [U, d], Wg of their global ones; bf16 or the dtype
            of the key.
        key, value: [M, Lm, d], Wk and Wv of the mentions' local features.
        norm: LayerNorm of the pooled context.
        pooling: of the entity's rows; mean runs without the product A V.
        query_mask [U, Le], key_mask [M, Lm]: bool, True = takes part; every row needs one True.
        rows: [E] int64, the entities to score, rows of query and gate; None = all, E = U. With rows a gradient comes
            from the reference.
        precision: of the products Q K^T and V_c gw (spec section 5.2): ``bf16`` rounds their operands, the key after
            the softmax scale was folded into it, and sums in fp32; mean pooling only. The gradients' products are
            rounded as well.
        backend: see the table in :mod:`m3el_fast.ops`.

    Returns:
        [M, E] scores in the dtype of the key.

    Raises:
        ValueError: shapes do not match, a mask is not bool, a row is out of range, or an option is unknown.
    """
    _check(query, key, value, gate, query_mask, key_mask, pooling, precision)
    if rows is not None:
        expect_rows("rows", rows, query.shape[0])
    native = _native_obstacle(query, key, value, gate, norm, pooling, has_gradient=rows is None)
    others = (query_mask, key_mask, rows)
    triton = _triton_obstacle(query, key, value, gate, norm, pooling, *others, has_gradient=rows is None)
    chosen = choose(backend, key, native, triton)
    if chosen != "reference" and (rows is None or rows.numel()):
        scores = torch.ops.m3el_fast.g2l_scores if chosen == "native" else triton_g2l.scores
        operands = _operands(query, key, value, gate, norm, query_mask, key_mask)
        result: Tensor = scores(*operands, rows, precision == "bf16")
        return result
    if rows is not None:
        query, gate = query[rows], gate[rows]
        query_mask = None if query_mask is None else query_mask[rows]
    return _in_blocks(query, key, value, gate, norm, pooling, query_mask, key_mask, precision == "bf16")


def g2l_pairs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm: LayerNormWeights,
    mention: Tensor,
    entity: Tensor,
    *,
    pooling: Pooling = "mean",
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    precision: Precision = "fp32",
    backend: Backend = "auto",
) -> Tensor:
    """Global-to-local scores [P] of the pairs (mention[i], entity[i]).

    Args:
        mention, entity: [P] int64, rows of key and value, and of query and gate; fastest with equal mentions together.

    The other arguments and the errors raised are those of :func:`g2l_scores`.
    """
    _check(query, key, value, gate, query_mask, key_mask, pooling, precision)
    expect_rows("mention", mention, key.shape[0])
    expect_rows("entity", entity, query.shape[0])
    expect("entity", entity, tuple(mention.shape))
    native = _native_obstacle(query, key, value, gate, norm, pooling, has_gradient=False)
    others = (query_mask, key_mask, mention, entity)
    triton = _triton_obstacle(query, key, value, gate, norm, pooling, *others, has_gradient=False)
    chosen = choose(backend, key, native, triton)
    if chosen != "reference" and mention.numel():
        pairs = torch.ops.m3el_fast.g2l_pairs if chosen == "native" else triton_g2l.pairs
        operands = _operands(query, key, value, gate, norm, query_mask, key_mask)
        result: Tensor = pairs(*operands, mention, entity, precision == "bf16")
        return result
    out = key.new_empty(len(mention))
    for m in mention.unique().tolist():
        places = (mention == m).nonzero()[:, 0]
        one = slice(m, m + 1)
        out[places] = g2l_scores(
            query,
            key[one],
            value[one],
            gate,
            norm,
            pooling=pooling,
            query_mask=query_mask,
            key_mask=None if key_mask is None else key_mask[one],
            rows=entity[places],
            precision=precision,
            backend="reference",
        )[0]
    return out


def _in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm: LayerNormWeights,
    pooling: Pooling,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    bf16: bool,
) -> Tensor:
    """The reference, in blocks where nothing has to be kept for a backward pass."""

    def block(e: slice, m: slice) -> Tensor:
        q, g = query[e].to(key.dtype), gate[e].to(key.dtype)
        q_mask = None if query_mask is None else query_mask[e]
        k_mask = None if key_mask is None else key_mask[m]
        if pooling == "mean":
            return reference.g2l_scores(q, key[m], value[m], g, norm, q_mask, k_mask, bf16)
        return reference.g2l_scores_paper(q, key[m], value[m], g, norm, pooling, q_mask, k_mask)

    entities, rows, d = query.shape
    mentions, columns, _ = key.shape
    if torch.is_grad_enabled() or entities == 0 or mentions == 0:
        return block(slice(None), slice(None))
    m_size = max(1, min(mentions, 64))
    per_pair = rows * (columns if pooling == "mean" else max(columns, d))
    e_size = max(1, _BLOCK_WEIGHTS // (m_size * per_pair))
    strips = [
        torch.cat([block(slice(e, e + e_size), slice(m, m + m_size)) for e in range(0, entities, e_size)], dim=1)
        for m in range(0, mentions, m_size)
    ]
    return torch.cat(strips)


def _native_obstacle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm: LayerNormWeights,
    pooling: Pooling,
    *,
    has_gradient: bool,
) -> str | None:
    if pooling != "mean":
        return f"the kernel has no {pooling} pooling"
    if query.numel() == 0 or key.numel() == 0:
        return "the kernel takes no empty tensors"
    wide = [t for t in (query, gate) if t.dtype != torch.bfloat16]
    obstacle = not_cpu_fp32(key, value, norm.weight, norm.bias, *wide)
    if obstacle is None and not has_gradient:
        return needs_gradient(query, key, value, gate, norm.weight, norm.bias)
    return obstacle


def _triton_obstacle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm: LayerNormWeights,
    pooling: Pooling,
    *others: Tensor | None,
    has_gradient: bool,
) -> str | None:
    """``others``: masks, rows of a list."""
    if pooling != "mean":
        return f"the kernel has no {pooling} pooling"
    if query.numel() == 0 or key.numel() == 0:
        return "the kernel takes no empty tensors"
    if key.shape[1] > _MOST_COLUMNS:
        return f"the kernel takes up to {_MOST_COLUMNS} mention tokens, got {key.shape[1]}"
    tensors = (query, key, value, gate, norm.weight, norm.bias)
    obstacle = gpu.not_gpu_floats(*tensors) or gpu.elsewhere(key, *others)
    return obstacle or (None if has_gradient else needs_gradient(*tensors))


def _operands(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm: LayerNormWeights,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
) -> tuple[Tensor | float | None, ...]:
    return (
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        gate.contiguous(),
        norm.weight.contiguous(),
        norm.bias.contiguous(),
        norm.eps,
        None if query_mask is None else query_mask.contiguous(),
        None if key_mask is None else key_mask.contiguous(),
    )


def _expect_mask(name: str, mask: Tensor | None, wanted: tuple[int, ...]) -> None:
    if mask is None:
        return
    expect(name, mask, wanted)
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: expected bool, got {mask.dtype}")


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    pooling: str,
    precision: str,
) -> None:
    entities, rows, d = shape("query", query, 3)
    mentions, columns, _ = shape("key", key, 3)
    expect("key", key, (mentions, columns, d))
    expect("value", value, (mentions, columns, d))
    expect("gate", gate, (entities, d))
    _expect_mask("query_mask", query_mask, (entities, rows))
    _expect_mask("key_mask", key_mask, (mentions, columns))
    if pooling not in ("mean", "max", "soft"):
        raise ValueError(f"pooling: expected 'mean', 'max' or 'soft', got {pooling!r}")
    if pooling != "mean" and precision != "fp32":
        raise ValueError(f"precision: expected 'fp32' with {pooling} pooling, got {precision!r}")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: expected 'fp32' or 'bf16', got {precision!r}")
