"""Union scores by :mod:`m3el_fast.ops.reference` alone: what every benchmarked result is checked against, and, timed,
the peer "section 5's reformulation in eager PyTorch"."""

from __future__ import annotations

import torch
from torch import Tensor

from m3el_fast.index import EntityIndex
from m3el_fast.matching import Matcher, Side, unit
from m3el_fast.ops import reference
from m3el_fast.units import DualGated, IntraModal, norm_weights

LEVEL = 1e-4  # scores that lie closer together than this may change places (issue: fp64 ties)


def intra_modal_scores(module: IntraModal, mention: dict[str, Tensor], entity: dict[str, Tensor]) -> Tensor:
    """Scores [M, E] of the unit of spec section 3.1."""
    g2l = reference.g2l_scores(
        entity["query"], mention["key"], mention["value"], entity["gate"], norm_weights(module.norm)
    )
    return (mention["global"] @ entity["global"].T + g2l) / 2


def dual_scores(module: DualGated, mention: dict[str, Tensor], entity: dict[str, Tensor]) -> Tensor:
    """Scores [M, E] of MIMIC's VDLU (spec section 4) on packed rows."""
    forth, back = module.entity_to_mention, module.mention_to_entity
    constants = reference.dual_constants(forth.weights()), reference.dual_constants(back.weights())
    there = reference.dual_scores(entity["source"], mention["target"], constants[0]).T
    return (there + reference.dual_scores(mention["source"], entity["target"], constants[1])) / 2


def union_scores(matcher: Matcher, mentions: Side, entities: Side) -> Tensor:
    """Union scores [M, E], visual scores once per distinct image of the entities (spec section 5.6)."""
    assert isinstance(matcher.text, IntraModal) and entities.image_index is not None
    parts = {"text": intra_modal_scores(matcher.text, unit(mentions.item, "text"), unit(entities.item, "text"))}
    if isinstance(matcher.image, DualGated):
        image = dual_scores(matcher.image, mentions.visual, entities.visual)
    else:
        assert matcher.image is not None
        image = intra_modal_scores(matcher.image, mentions.visual, entities.visual)
    parts["image"] = image[:, entities.image_index]
    for name, context in unit(mentions.item, "cross").items():
        parts[name] = context @ entities.item[f"cross.{name}"].T
    return matcher.combine(parts).union


def stored_entities(index: EntityIndex, start: int, stop: int, dtype: torch.dtype) -> Side:
    """The rows start..stop-1 of an index in memory, widened to ``dtype``."""
    rows = torch.arange(start, stop)
    images, place = index.image_index[rows].unique(return_inverse=True)
    return Side(
        _gathered(index.items(rows), dtype),
        _gathered(index.visual(images), dtype),
        place,
    )


def widened(side: Side, dtype: torch.dtype) -> Side:
    return Side(
        {name: tensor.to(dtype) for name, tensor in side.item.items()},
        {name: tensor.to(dtype) for name, tensor in side.visual.items()},
        side.image_index,
    )


def all_scores(matcher: Matcher, mentions: Side, index: EntityIndex, block: int = 512) -> Tensor:
    """Union scores [M, rows] fp32 of every row of an index, computed on its stored features."""
    strips = [
        union_scores(matcher, mentions, stored_entities(index, start, min(start + block, index.rows), torch.float32))
        for start in range(0, index.rows, block)
    ]
    return torch.cat(strips, dim=1)


def check_ranks(ranks: Tensor, gold: Tensor, scores: Tensor) -> None:
    """Assert that ranks [M] of ``gold`` [M] are those of ``scores`` [M, E], up to scores within ``LEVEL``."""
    own = scores.gather(1, gold[:, None])
    others = torch.ones_like(scores, dtype=torch.bool).scatter(1, gold[:, None], False)
    best = 1 + ((scores > own + LEVEL) & others).sum(dim=1)
    worst = 1 + ((scores > own - LEVEL) & others).sum(dim=1)
    wrong = (ranks < best) | (ranks > worst)
    assert not wrong.any(), f"ranks {ranks[wrong].tolist()} outside {best[wrong].tolist()}..{worst[wrong].tolist()}"


def check_topk(rows: Tensor, scores: Tensor) -> None:
    """Assert that ``rows`` [M, k] are the k best of ``scores`` [M, E], best first, up to scores within ``LEVEL``."""
    found, best = scores.gather(1, rows), scores.topk(rows.shape[1], dim=1).values
    assert all(len(set(row)) == len(row) for row in rows.tolist()), "an entity comes back twice"
    assert ((found - best).abs() <= LEVEL).all(), f"scores differ by up to {float((found - best).abs().max())}"


def _gathered(files: object, dtype: torch.dtype) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for _, tensors, local in files:  # type: ignore[attr-defined]
        for name, tensor in tensors.items():
            parts.setdefault(name, []).append(tensor[local].to(dtype))
    return {name: torch.cat(rows) for name, rows in parts.items()}
