"""Two-stage selection: each mention's candidates by the coarse score, and the union scores of these."""

from __future__ import annotations

import math
from numbers import Integral, Number

import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.errors import InputError
from m3el_fast.matching import Matcher, Side
from m3el_fast.ops import G2LOperands, Precision
from m3el_fast.scoring.entities import Block, Entities, Resident
from m3el_fast.scoring.identity import Identity
from m3el_fast.scoring.pairs import PairScorer
from m3el_fast.scoring.scan import clean

_PAIRS = 1 << 22  # candidates reranked at a time: where no kernel takes them as they are, lists of 100 bytes a pair


def candidate_number(candidates: object, k: int) -> int | None:
    """How many candidates are asked for, where they are a number and not ids.

    Raises:
        InputError: they are no whole number, or fewer than k.
    """
    if not isinstance(candidates, Number):
        return None
    if isinstance(candidates, bool) or not isinstance(candidates, Integral):
        raise InputError("candidates", "ids for each mention, or a whole number", candidates)
    if candidates < k:
        raise InputError("candidates", f"at least {k} (k)", candidates)
    return int(candidates)


def coarse_topk(coarse: Side, entities: Entities, size: int, eligible: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` entities of each of M mentions with the largest coarse scores; nothing waits for the device.

    Args:
        coarse: the mentions' vectors, from :meth:`Matcher.coarse`, on the entities' device.
        size: entities to scan at a time.
        eligible: [rows] bool, which may be chosen.

    Returns:
        Coarse scores fp32 and rows int64 [M, count], best first, ties to the lower row; where there are fewer, NaN
        and -1.
    """
    assert coarse.image_index is not None
    shape = (len(coarse.image_index), count)
    values = torch.full(shape, math.nan, device=eligible.device)
    rows = torch.full(shape, -1, device=eligible.device)
    for block in entities.blocks(size, {*coarse.item, *coarse.visual}):
        # NaN, behind every number, is what cannot be chosen, and clean scores are none
        scores = clean(_scores(coarse, block)).masked_fill_(~eligible[block.start : block.stop], math.nan)
        values, rows = ops.topk_merge(values, rows, scores, block.start)
    return values, rows.masked_fill(values.isnan(), -1)  # whichever of equal NaN were kept


def _scores(coarse: Side, block: Block) -> Tensor:
    """Coarse scores [M, n] of a block's entities, the image's term once per distinct image (spec section 5.6)."""
    terms = [ops.inner_scores(vectors, block.item[name]) for name, vectors in coarse.item.items()]
    for name, vectors in coarse.visual.items():
        strips = [
            ops.inner_scores(vectors, visual[name] if rows is None else visual[name][rows])
            for visual, rows in block.visual
        ]
        terms.append(torch.cat(strips, dim=1)[coarse.image_index][:, block.place])
    scores = terms[0]
    for term in terms[1:]:
        scores += term
    return scores


class Reranker:
    """Union scores of each mention's candidates, as exact as those of a scan.

    Args:
        precision: of G2L's products.
    """

    def __init__(self, matcher: Matcher, entities: Entities, identity: Identity, precision: Precision) -> None:
        self.matcher, self.entities, self.precision = matcher, entities, precision
        self._pairs = PairScorer(matcher, entities, identity, precision)

    def scores(self, mentions: Side, coarse: Tensor, rows: Tensor) -> Tensor:
        """[M, C] fp32; NaN became -inf.

        Args:
            coarse, rows: [M, C], from :func:`coarse_topk`; a mention's rows are all different.
        """
        if isinstance(self.entities, Resident):
            parts = self.matcher.g2l(mentions, self.entities.side())
            if parts is not None:
                return clean(coarse + self._gathered(parts, rows))
        mention, column = (rows >= 0).nonzero(as_tuple=True)
        scores = self._pairs.scores(mentions, mention, rows[mention, column])["union"]
        return clean(torch.full_like(coarse, -math.inf).index_put((mention, column), scores))

    def _gathered(self, parts: list[G2LOperands], rows: Tensor) -> Tensor:
        """The sum of ``parts`` [M, C]: :func:`ops.rerank_topk` without a coarse vector, put back in order."""
        count, width = rows.shape
        rows, order = rows.sort(dim=1)
        mention, entity = (torch.empty((n, 0), device=rows.device) for n in (count, len(self.entities.live)))
        sums = torch.empty(rows.shape, device=rows.device)
        step = max(1, _PAIRS // width)
        for start in range(0, count, step):
            own = slice(start, start + step)
            few = [part._replace(key=part.key[own], value=part.value[own]) for part in parts]
            found, ids = ops.rerank_topk(mention[own], entity, few, rows[own], width, precision=self.precision)
            sums[own] = found.gather(1, ids.argsort(dim=1))  # ascending, as the rows are, of which none comes twice
        return sums.scatter(1, order, sums)
