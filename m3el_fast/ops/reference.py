"""Every matching op in plain PyTorch: the oracle of all kernels (the losses: ``reference_losses.py``).

Each op stands here as the papers write it (``*_paper``) and, where spec section 5 has one, in the exact reformulated
form that fast kernels implement; both agree to 1e-10 in fp64. All functions are differentiable and keep the dtype of
their arguments.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LayerNormWeights(NamedTuple):
    """A LayerNorm over the last dimension: ``weight`` and ``bias`` [d], and its ``eps``."""

    weight: Tensor
    bias: Tensor
    eps: float = 1e-5

    def apply(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


# ----------------------------------------------------------------------------------------------------------------------
# Global-to-local scores (spec sections 3.1 and 5.2)


def g2l_scores_paper(
    query: Tensor,  # [E, Le, d]
    key: Tensor,  # [M, Lm, d]
    value: Tensor,  # [M, Lm, d]
    gate: Tensor,  # [E, d]
    norm: LayerNormWeights,
    pooling: str = "mean",
    query_mask: Tensor | None = None,  # [E, Le] bool
    key_mask: Tensor | None = None,  # [M, Lm] bool
) -> Tensor:
    """G2L [M, E] as M3EL Eq. 5 and spec 3.1 write it: attention, A V, pooling of the rows, LayerNorm, dot."""
    logits = torch.einsum("eqd,mkd->meqk", query, key) / math.sqrt(query.shape[-1])
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, None, :], -math.inf)
    rows = logits.softmax(dim=-1) @ value[:, None]  # [M, E, Le, d]
    context = _pool_rows(rows, pooling, None if query_mask is None else query_mask[None, :, :, None])
    return torch.einsum("med,ed->me", norm.apply(context), gate)


def _pool_rows(rows: Tensor, pooling: str, mask: Tensor | None) -> Tensor:
    if pooling == "mean":
        return rows.mean(dim=-2) if mask is None else (rows * mask).sum(dim=-2) / mask.sum(dim=-2)
    hidden = rows if mask is None else rows.masked_fill(~mask, -math.inf)
    if pooling == "max":
        return hidden.amax(dim=-2)
    return (rows * hidden.softmax(dim=-2)).sum(dim=-2)  # soft


def g2l_scores(
    query: Tensor,  # [E, Le, d]
    key: Tensor,  # [M, Lm, d]
    value: Tensor,  # [M, Lm, d]
    gate: Tensor,  # [E, d]
    norm: LayerNormWeights,
    query_mask: Tensor | None = None,  # [E, Le] bool
    key_mask: Tensor | None = None,  # [M, Lm] bool
    bf16: bool = False,
) -> Tensor:
    """G2L [M, E] with mean pooling, without A V (spec 5.2): w = column means of A, then Gram-form LayerNorm and dot.

    With ``bf16`` the operands of Q K^T and of V_c gw are rounded, the key after log2(e) / sqrt(d) went into it.
    """
    entities, rows, d = query.shape
    mentions, columns, _ = key.shape
    rounded = _round_bf16 if bf16 else _keep
    logits = rounded(query).reshape(-1, d) @ rounded(key * (math.log2(math.e) / math.sqrt(d))).reshape(-1, d).T
    logits = (logits * math.log(2)).view(entities, rows, mentions, columns)
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask, -math.inf)
    attention = logits.softmax(dim=-1)
    if query_mask is None:
        w = attention.mean(dim=1)  # [E, M, Lm]
    else:
        share = query_mask.to(attention.dtype) / query_mask.sum(dim=1, keepdim=True)
        w = torch.einsum("eqmk,eq->emk", attention, share)
    w = w.transpose(0, 1)  # [M, E, Lm]
    centred = value - value.mean(dim=-1, keepdim=True)
    gram = centred @ centred.transpose(1, 2)  # [M, Lm, Lm]
    dot = (w * (rounded(gate * norm.weight) @ rounded(centred).transpose(1, 2))).sum(dim=-1)
    variance = ((w @ gram) * w).sum(dim=-1).clamp_min(0) / d
    return dot * (variance + norm.eps).rsqrt() + gate @ norm.bias


def _round_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def _keep(x: Tensor) -> Tensor:
    return x


# ----------------------------------------------------------------------------------------------------------------------
# Cross-modal context (spec sections 3.2 and 5.4)

HEAD_TEMPERATURES: dict[int, tuple[float, ...]] = {
    1: (3.0,),
    2: (3.0, math.inf),
    3: (2.0, 4.0, math.inf),
    4: (2.0, 3.0, 4.0, math.inf),
    5: (2.0, 2.5, 3.5, 4.5, math.inf),
    6: (2.0, 3.0, 4.0, 5.0, 6.0, math.inf),
    7: (0.5, 2.5, 3.5, 4.5, 5.5, 6.5, math.inf),
    8: (0.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.inf),
}
"""Temperatures of the K pooling heads; infinity is the max head (spec section 3.2)."""


class CrossModalWeights(NamedTuple):
    """Weights of one cross-modal unit (spec section 3.2).

    Attributes:
        u_weight, u_bias: U, [d, d] and [d].
        gate_weight, gate_bias: w, b of the scalar gate, [1, d] and [1].
        norm: the final LayerNorm.
        head_weight: [K], multiplies each head's output.
        lam: lambda.
        fusion_weight, fusion_bias: F of the T2V-only form, [d, d] and [d]; None in the bidirectional form.
    """

    u_weight: Tensor
    u_bias: Tensor
    gate_weight: Tensor
    gate_bias: Tensor
    norm: LayerNormWeights
    head_weight: Tensor
    lam: float
    fusion_weight: Tensor | None = None
    fusion_bias: Tensor | None = None


def cross_modal_context_paper(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> Tensor:
    """Context ``out`` [n, d] of globals [n, d] and locals [n, L, d] with every row of L' written out (M3EL Eq. 6-7)."""
    g = glob[:, None]  # [n, 1, d]
    enriched = _match(g, local, weights)
    rows = _match(local, g, weights)  # [n, L, d]
    if weights.fusion_weight is None:
        pooled = _pool_heads(torch.cat([enriched, rows], dim=1), weights)
    else:
        pooled = _fuse(_pool_heads(rows, weights), enriched[:, 0], weights)
    return _gate(glob, pooled, weights)


def _match(p: Tensor, q: Tensor, weights: CrossModalWeights) -> Tensor:
    projected = F.linear(q, weights.u_weight, weights.u_bias)
    attention = (p @ projected.transpose(1, 2)).softmax(dim=-1)
    return F.linear(attention @ q, weights.u_weight, weights.u_bias).relu()


def _pool_heads(h: Tensor, weights: CrossModalWeights) -> Tensor:
    """H of rows h [n, r, d]: mean over heads of (mean row + lambda * pooled row)."""
    total = torch.zeros_like(h[:, 0])
    temperatures = HEAD_TEMPERATURES[weights.head_weight.shape[0]]
    for temperature, weight in zip(temperatures, weights.head_weight, strict=True):
        pooled = h.amax(dim=1) if temperature == math.inf else (h * (temperature * h).softmax(dim=1)).sum(dim=1)
        total = total + weight * (h.mean(dim=1) + weights.lam * pooled)
    return total / len(temperatures)


def _fuse(pooled: Tensor, enriched: Tensor, weights: CrossModalWeights) -> Tensor:
    assert weights.fusion_weight is not None
    f = F.linear(pooled, weights.fusion_weight, weights.fusion_bias)
    f = (f + F.linear(enriched, weights.fusion_weight, weights.fusion_bias)).sigmoid()
    return enriched * f + pooled * (1 - f)


def _gate(glob: Tensor, pooled: Tensor, weights: CrossModalWeights) -> Tensor:
    gate = F.linear(glob, weights.gate_weight, weights.gate_bias).tanh()
    return weights.norm.apply(glob * gate + pooled)


def cross_modal_context(glob: Tensor, local: Tensor, weights: CrossModalWeights) -> Tensor:
    """Context ``out`` [n, d] with the pooled heads in closed form (spec 5.4): all rows of L' equal relu(U g)."""
    # p (U q)^T = (p U_w) q^T + p . U_b, and the last term is the same for all rows: softmax ignores it
    attention = (local @ (glob @ weights.u_weight)[:, :, None]).softmax(dim=1)  # [n, L, 1]
    context = (attention.transpose(1, 2) @ local)[:, 0]
    a = F.linear(context, weights.u_weight, weights.u_bias).relu()
    r = F.linear(glob, weights.u_weight, weights.u_bias).relu()
    if weights.fusion_weight is None:
        pooled = _pool_two_rows(a, r, local.shape[1], weights)
    else:
        pooled = _fuse((1 + weights.lam) * weights.head_weight.mean() * r, a, weights)
    return _gate(glob, pooled, weights)


def _pool_two_rows(a: Tensor, r: Tensor, n: int, weights: CrossModalWeights) -> Tensor:
    """H of the rows [a; r repeated n times]."""
    temperatures = HEAD_TEMPERATURES[weights.head_weight.shape[0]]
    difference = a - r
    total = weights.head_weight.sum() * (a + n * r) / (n + 1)
    for temperature, weight in zip(temperatures, weights.head_weight, strict=True):
        if temperature == math.inf:
            pooled = torch.maximum(a, r)
        else:
            pooled = r + difference * (temperature * difference - math.log(n)).sigmoid()
        total = total + weights.lam * weight * pooled
    return total / len(temperatures)


# ----------------------------------------------------------------------------------------------------------------------
# MIMIC's dual-gated scores (spec sections 4 and 5.5)


class DualWeights(NamedTuple):
    """Weights of one DUAL unit behind its input projections (spec section 4): F, the gate, LN1 and LN2."""

    f_weight: Tensor  # [d, d]
    f_bias: Tensor  # [d]
    gate_weight: Tensor  # [1, d]
    gate_bias: Tensor  # [1]
    norm1: LayerNormWeights
    norm2: LayerNormWeights


def dual_scores_paper(source: Tensor, key: Tensor, value: Tensor, weights: DualWeights) -> Tensor:
    """DUAL scores [S, T] of source vectors a [S, d] and target vectors k, v [T, d], pair by pair (MIMIC, VDLU)."""
    x = weights.norm1.apply(value[None] + source[:, None])
    x = F.linear(x, weights.f_weight, weights.f_bias)  # [S, T, d]
    gate = F.linear(x, weights.gate_weight, weights.gate_bias).tanh()
    y = weights.norm2.apply(x * gate + key[None])
    return torch.einsum("std,sd->st", y, weights.norm2.apply(source))


class DualConstants(NamedTuple):
    """What a pair of one DUAL unit needs beside its two packed rows: scalars, and the eps of LN1 and LN2."""

    gate: Tensor  # w . (F bias1) + b0
    bias: Tensor  # |centred F image of LN1's bias|^2
    eps1: float
    eps2: float


def dual_source(source: Tensor, weights: DualWeights) -> Tensor:
    """Source vectors a [S, d] as packed rows [S, 3 d + 7]: three vectors and the scalars beside them (spec 5.5)."""
    a = _centre(source)
    pa = F.linear(weights.norm1.weight * a, weights.f_weight)
    q = _dual_bias(weights)
    n = weights.norm2.apply(source)
    n_c, pa_c = _centre(weights.norm2.weight * n), _centre(pa)
    scalars = [
        (a * a).sum(1),
        F.linear(pa, weights.gate_weight)[:, 0],
        (n_c * pa).sum(1),
        n_c @ q,
        (pa_c * pa_c).sum(1),
        pa_c @ _centre(q),
        n @ weights.norm2.bias,
    ]
    return torch.cat([a, n_c, pa_c, torch.stack(scalars, dim=1)], dim=1)


def dual_target(key: Tensor, value: Tensor, weights: DualWeights) -> Tensor:
    """Target vectors k, v [T, d] as packed rows [T, 3 d + 7] (spec 5.5)."""
    v = _centre(value)
    pv = F.linear(weights.norm1.weight * v, weights.f_weight)
    pv_c, k_c, q_c = _centre(pv), _centre(key), _centre(_dual_bias(weights))
    scalars = [
        (v * v).sum(1),
        F.linear(pv, weights.gate_weight)[:, 0],
        (pv_c * pv_c).sum(1),
        pv_c @ q_c,
        (k_c * k_c).sum(1),
        (pv_c * k_c).sum(1),
        k_c @ q_c,
    ]
    return torch.cat([v, pv_c, k_c, torch.stack(scalars, dim=1)], dim=1)


def dual_constants(weights: DualWeights) -> DualConstants:
    """The constants of one DUAL unit."""
    q = _dual_bias(weights)
    q_c = _centre(q)
    gate = (F.linear(q, weights.gate_weight) + weights.gate_bias)[0]
    return DualConstants(gate, (q_c * q_c).sum(), weights.norm1.eps, weights.norm2.eps)


def _dual_bias(weights: DualWeights) -> Tensor:
    """q: F's image of LN1's bias."""
    return F.linear(weights.norm1.bias, weights.f_weight, weights.f_bias)


def dual_scores(source: Tensor, target: Tensor, constants: DualConstants) -> Tensor:
    """DUAL scores [S, T] of packed rows from five inner products per pair and scalar arithmetic (spec 5.5)."""
    d = (source.shape[1] - 7) // 3
    a, n, pa = (source[:, i * d : (i + 1) * d] for i in range(3))
    v, pv, k = (target[:, i * d : (i + 1) * d] for i in range(3))
    products = (a @ v.T, n @ pv.T, n @ k.T, pa @ pv.T, pa @ k.T)
    return _dual_combine(products, source[:, 3 * d :, None].unbind(1), target[None, :, 3 * d :].unbind(2), d, constants)


def dual_pairs(
    source: Tensor, target: Tensor, constants: DualConstants, source_row: Tensor, target_row: Tensor
) -> Tensor:
    """DUAL scores [P] of the pairs (source_row, target_row) of packed rows."""
    d = (source.shape[1] - 7) // 3
    s, t = source[source_row], target[target_row]
    a, n, pa = (s[:, i * d : (i + 1) * d] for i in range(3))
    v, pv, k = (t[:, i * d : (i + 1) * d] for i in range(3))
    products = tuple((x * y).sum(1) for x, y in ((a, v), (n, pv), (n, k), (pa, pv), (pa, k)))
    return _dual_combine(products, s[:, 3 * d :].unbind(1), t[:, 3 * d :].unbind(1), d, constants)


def _dual_combine(
    products: tuple[Tensor, ...],
    source: tuple[Tensor, ...],
    target: tuple[Tensor, ...],
    d: int,
    constants: DualConstants,
) -> Tensor:
    """The score from the products a.v, n.pv, n.k, pa.pv, pa.k and the scalars of both sides.

    LN1(v + a) = weight1 (v_c + a_c) / s1 + bias1, so that x = (pv + pa) / s1 + q, and z = x g + k gives
    LN2(z) . n = (n_c . z) / s2 + bias2 . n with n_c = weight2 * n, centred.
    """
    av, n_pv, n_k, pa_pv, pa_k = products
    a_a, gate_a, n_pa, n_q, pa_pa, pa_q, n_bias = source
    v_v, gate_v, pv_pv, pv_q, k_k, pv_k, k_q = target
    rstd1 = ((a_a + v_v + 2 * av).clamp_min(0) / d + constants.eps1).rsqrt()
    g = ((gate_a + gate_v) * rstd1 + constants.gate).tanh()
    s = g * rstd1
    dot = s * (n_pv + n_pa) + g * n_q + n_k
    square = s * s * (pa_pa + pv_pv + 2 * pa_pv) + g * g * constants.bias + k_k
    square = square + 2 * s * g * (pa_q + pv_q) + 2 * s * (pa_k + pv_k) + 2 * g * k_q
    return dot * (square.clamp_min(0) / d + constants.eps2).rsqrt() + n_bias


def _centre(x: Tensor) -> Tensor:
    return x - x.mean(dim=-1, keepdim=True)


# ----------------------------------------------------------------------------------------------------------------------
# Selection


def topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and int64 indices [M, k] of the k largest of [M, N], sorted; ties go to the lower index, NaN last."""
    missing = scores.isnan()
    order = missing.to(torch.int8).sort(dim=1, stable=True).indices
    filled = scores.masked_fill(missing, -math.inf).gather(1, order)
    order = order.gather(1, filled.sort(dim=1, descending=True, stable=True).indices)[:, :k]
    return scores.gather(1, order), order


class G2LOperands(NamedTuple):
    """One modality's global-to-local operands of E' rows and M mentions, and its share in the union score.

    Attributes:
        query [E', Le, d], gate [E', d]: of the entities, or of the distinct images.
        key, value [M, Lm, d]: of the mentions.
        norm: the LayerNorm; scale: factor of G2L in the union score.
        row: [E] int64, the row in query and gate of each entity; None = its own.
    """

    query: Tensor
    gate: Tensor
    key: Tensor
    value: Tensor
    norm: LayerNormWeights
    scale: float
    row: Tensor | None = None


def rerank_topk_paper(
    mention_coarse: Tensor, entity_coarse: Tensor, parts: list[G2LOperands], candidates: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """:func:`rerank_topk` by scoring all pairs and looking the candidates up."""
    scores = mention_coarse @ entity_coarse.T
    for part in parts:
        g2l = g2l_scores_paper(part.query, part.key, part.value, part.gate, part.norm)
        scores = scores + part.scale * (g2l if part.row is None else g2l[:, part.row])
    return _rank_candidates(scores.gather(1, candidates.clamp_min(0)), candidates, k)


def rerank_topk(
    mention_coarse: Tensor,  # [M, D]
    entity_coarse: Tensor,  # [E, D]
    parts: list[G2LOperands],
    candidates: Tensor,  # [M, C] int64
    k: int,
) -> tuple[Tensor, Tensor]:
    """The k best of each mention's own candidates by the union score (spec 3.3): coarse product + scaled G2L parts.

    ``candidates`` holds entity rows, -1 = none, ids may repeat (and are then returned as often). Returns values and
    entity ids [M, k], sorted, ties to the earlier column; places without a candidate hold -inf and -1.
    """
    rows = candidates.clamp_min(0)
    scores = torch.einsum("md,mcd->mc", mention_coarse, entity_coarse[rows])
    for part in parts:
        own = rows if part.row is None else part.row[rows]
        g2l = [
            g2l_scores(part.query[r], part.key[i : i + 1], part.value[i : i + 1], part.gate[r], part.norm)
            for i, r in enumerate(own)
        ]
        scores = scores + part.scale * torch.cat(g2l) if g2l else scores
    return _rank_candidates(scores, candidates, k)


def _rank_candidates(scores: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # an absent candidate counts as NaN: behind every number and, moved to the last columns, behind real NaN
    absent = candidates < 0
    order = absent.to(torch.int8).sort(dim=1, stable=True).indices
    values, columns = topk(scores.masked_fill(absent, math.nan).gather(1, order), k)
    ids = candidates.gather(1, order).gather(1, columns)
    return values.masked_fill(ids < 0, -math.inf), ids
