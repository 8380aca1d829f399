"""What the kernels of global-to-local scores read, and the constexprs that follow from it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

TRITON_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class Operands(NamedTuple):
    """What the kernels read of the tensors of ``ops.g2l_scores``; contiguous.

    Attributes:
        query [U, Le, d] and key [M, Lm, d]: of the products; scale: of q . k, times log2(e).
        centred [M, Lm, d]: value less its mean over d; gain [E, d]: gate times LayerNorm's weight; shift [E]: gate
            times its bias; fp32.
        query_mask [U, Le], key_mask [M, Lm]: uint8, or None.
    """

    query: Tensor
    key: Tensor
    centred: Tensor
    gain: Tensor
    shift: Tensor
    scale: float
    eps: float
    query_mask: Tensor | None
    key_mask: Tensor | None


def operands(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    bf16: bool,
    rows: Tensor | None = None,
) -> Operands:
    """Operands of the entities ``rows`` [E] int64 of query and gate; None = all.

    With ``bf16`` the products' operands are rounded, the key after the softmax scale was folded into it; the kernel
    rounds queries of which only some rows count.
    """
    scale = math.log2(math.e) / math.sqrt(query.shape[-1])
    if bf16 and key.dtype == torch.float32:
        query = query.bfloat16() if rows is None else query
        key, scale = (key * scale).bfloat16(), 1.0
    value, gate = value.float(), (gate if rows is None else gate[rows]).float()
    centred = value - value.mean(dim=-1, keepdim=True)
    shift = gate @ norm_bias.float()
    masks = [None if mask is None else mask.contiguous().view(torch.uint8) for mask in (query_mask, key_mask)]
    tensors = (x.contiguous() for x in (query, key, centred, gate * norm_weight.float(), shift))
    return Operands(*tensors, scale, eps, *masks)


def flags(key: Tensor, constexprs: dict[str, int], query_mask: bool, key_mask: bool) -> dict[str, Any]:
    """The constexprs that follow from the key [M, Lm, d] and from which masks there are."""
    columns, d = key.shape[1:]
    width = constexprs["D1"] if constexprs["STREAM"] else constexprs["D1"] + constexprs["D2"]
    return {
        "EVEN_D": d % width == 0,
        "FULL": constexprs["N1"] + constexprs["N2"] == columns and not key_mask,
        "HAS_QUERY_MASK": query_mask,
        "HAS_KEY_MASK": key_mask,
        "PRECISION": "tf32x3" if key.dtype == torch.float32 else "tf32",
    }
