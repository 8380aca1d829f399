"""The peers in eager PyTorch, in the manner of the released code; all are checked against the reference before use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from m3el_fast.features import Features
from m3el_fast.matching import Matcher
from m3el_fast.ops import G2LOperands, LayerNormWeights, reference
from m3el_fast.units import CrossModal, IntraModal


def released_g2l(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, norm: LayerNormWeights) -> Tensor:
    """G2L [M, E] of query [E, Le, d], gate [E, d] and key, value [M, Lm, d]: every A and A V written out."""
    logits = query[:, None] @ key[None].transpose(-1, -2) / math.sqrt(query.shape[-1])  # [E, M, Le, Lm]
    context = (logits.softmax(dim=-1) @ value[None]).mean(dim=-2)
    return (gate[:, None] * norm.apply(context)).sum(dim=-1).T


def released_icl(entity: Tensor, mention: Tensor, tau: float, beta: float, gamma: float) -> Tensor:
    """ICL of [B, d] features in the released variant: logits and one-hot labels [B, 2 B] of either side written out."""
    batch = len(entity)
    e, m = (torch.nn.functional.normalize(side, dim=-1) for side in (entity, mention))
    itself = torch.eye(batch, dtype=entity.dtype)
    labels = torch.cat([itself, torch.zeros_like(itself)], dim=1)
    total = entity.new_zeros(())
    for own, other in ((e, m), (m, e)):
        same = beta * (own @ own.T) / tau
        logits = torch.cat([gamma * (own @ other.T) / tau, same * (1 - itself)], dim=1)
        total = total - (labels * logits.log_softmax(dim=1)).sum() / batch
    return total / 2


def released_scores(matcher: Matcher, mentions: Features, entities: Features) -> Tensor:
    """Union scores [M, E] of M3EL from features, one image per item: all of the matcher for every block of entities."""
    assert isinstance(matcher.cross, CrossModal)
    left, right = _normalised(matcher, mentions), _normalised(matcher, entities)
    scores = {}
    for name, module in (("text", matcher.text), ("image", matcher.image)):
        assert isinstance(module, IntraModal)
        m_global, m_local = getattr(left, f"{name}_global"), getattr(left, f"{name}_local")
        e_global, e_local = getattr(right, f"{name}_global"), getattr(right, f"{name}_local")
        norm = LayerNormWeights(module.norm.weight, module.norm.bias, module.norm.eps)
        g2l = released_g2l(
            module.query(e_local), module.key(m_local), module.value(m_local), module.gate(e_global), norm
        )
        scores[name] = (m_global @ e_global.T + g2l) / 2
    m_context, e_context = _contexts(matcher.cross, left), _contexts(matcher.cross, right)
    scores |= {name: m_context[name] @ e_context[name].T for name in m_context}
    return matcher.combine(scores).union


def released_ranks(
    matcher: Matcher, mentions: Features, entities: Features, gold: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Ranks [M] of the golds by a double argsort, and the scores [M, E]: entities in chunks, as in the evaluation."""
    count = len(entities)
    parts = [released_scores(matcher, mentions, _rows(entities, i, i + chunk)) for i in range(0, count, chunk)]
    scores = torch.cat(parts, dim=1)
    places = scores.argsort(dim=1, descending=True).argsort(dim=1)
    return places.gather(1, gold[:, None])[:, 0] + 1, scores


def eager_rerank(
    mention_coarse: Tensor,
    entity_coarse: Tensor,
    parts: list[G2LOperands],
    candidates: Tensor,
    k: int,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """``ops.rerank_topk`` by gathering each mention's candidates ``chunk`` at a time; entity tensors of any dtype."""
    scores = torch.empty(candidates.shape)
    for i, own in enumerate(candidates):
        for j in range(0, len(own), chunk):
            rows = own[j : j + chunk]
            total = entity_coarse[rows] @ mention_coarse[i]
            for part in parts:
                at = rows if part.row is None else part.row[rows]
                query, gate = part.query[at].float(), part.gate[at].float()
                one = slice(i, i + 1)
                g2l = reference.g2l_scores(query, part.key[one], part.value[one], gate, part.norm)
                total = total + part.scale * g2l[0]
            scores[i, j : j + chunk] = total
    values, columns = scores.topk(k, dim=1)
    return values, candidates.gather(1, columns)


def batched_rerank(
    mention_coarse: Tensor, entity_coarse: Tensor, parts: list[G2LOperands], candidates: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """``ops.rerank_topk`` by gathering the candidates of all mentions at once, products in the index's dtype."""
    scores = torch.einsum("md,mcd->mc", mention_coarse, entity_coarse[candidates])
    for part in parts:
        at = candidates if part.row is None else part.row[candidates]
        query, gate = part.query[at], part.gate[at].float()
        key = (part.key / math.sqrt(part.key.shape[-1])).to(query.dtype)
        w = (query @ key[:, None].transpose(-1, -2)).float().softmax(dim=-1).mean(dim=2)  # [M, C, Lm]
        centred = part.value - part.value.mean(dim=-1, keepdim=True)
        dot = (w * ((gate * part.norm.weight) @ centred.transpose(1, 2))).sum(dim=-1)
        variance = ((w @ (centred @ centred.transpose(1, 2))) * w).sum(dim=-1) / gate.shape[-1]
        scores = scores + part.scale * (dot * (variance + part.norm.eps).rsqrt() + gate @ part.norm.bias)
    values, columns = scores.topk(k, dim=1)
    return values, candidates.gather(1, columns)


def _normalised(matcher: Matcher, f: Features) -> Features:
    return Features(
        matcher.text_global_norm(f.text_global),
        matcher.text_local_norm(f.text_local),
        matcher.image_global_norm(f.image_global),
        matcher.image_local_norm(f.image_local),
    )


def _contexts(module: CrossModal, f: Features) -> dict[str, Tensor]:
    weights = module.weights()
    assert module.text is not None
    text_local = module.text if module.text_local is None else module.text_local
    text, image = module.text(f.text_global), module.image(f.image_global)
    return {
        "t2v": reference.cross_modal_context_paper(text, module.image(f.image_local), weights),
        "v2t": reference.cross_modal_context_paper(image, text_local(f.text_local), weights),
    }


def _rows(f: Features, start: int, stop: int) -> Features:
    part = slice(start, stop)
    return Features(f.text_global[part], f.text_local[part], f.image_global[part], f.image_local[part])


def one_image_each(f: Features) -> Features:
    """Features with a row of images per item, as the released code holds them."""
    assert f.image_index is not None
    return Features(f.text_global, f.text_local, f.image_global[f.image_index], f.image_local[f.image_index])
