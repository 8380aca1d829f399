"""The released evaluation's loop, and ``compat.rank_all`` in its place, on the same features."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from bench import oracle
from bench.cases.forms import Computation, Forms
from bench.features import CHECKED, DT, DV, SyntheticKB, SyntheticMentions, synthetic_model
from bench.peers import one_image_each, released_ranks
from m3el_fast.compat import M3ELMatcher, PreparedEntities, rank_all

LOOP, RANK_ALL, PREPARED = "the released loop", "rank_all", "rank_all, entities prepared before"


class RankAll(Computation):
    """Ranks of ``mentions`` golds among ``entities`` entities, an image each, by a fresh matcher of the papers' sizes.

    The loop's chunk is its best one; all mentions are one of its batches.
    """

    FORMS = (LOOP, RANK_ALL, PREPARED)
    unit: ClassVar[str] = "pairs"

    def __init__(self, mentions: int, entities: int) -> None:
        torch.manual_seed(43)
        sizes = {"dt": DT, "input_hidden_dim": DT, "dv": DV, "head_num": 5, "weight": 1.0, "loss_temperature": 0.03}
        hidden = {f"{unit}_hidden_dim": DV for unit in ("TIMM", "IIMM", "CMM")}
        model = Namespace(**sizes, **hidden, inter_weight=1.0, intra_weight=0.8)
        self._matcher = M3ELMatcher(Namespace(model=model)).eval()
        encoder, source = synthetic_model("m3el"), SyntheticMentions(entities)
        rows = torch.arange(mentions)
        self._gold = source.gold(rows)
        self._left = one_image_each(encoder.features(source.inputs(rows)))
        self._right = one_image_each(encoder.features(SyntheticKB(entities).inputs(torch.arange(entities))))
        self._blocks = [
            [side.text_global, side.image_global, side.text_local, side.image_local]
            for side in (self._left, self._right)
        ]
        self._prepared = PreparedEntities(self._matcher, self._blocks[1], progress=False)
        form = self._matcher.form()
        few, all_entities = form.mention_side(self._left).take(slice(0, CHECKED)), form.entity_side(self._right)
        all_entities = replace(all_entities, image_index=torch.arange(entities))
        sides = (oracle.widened(side, torch.float64) for side in (few, all_entities))
        form.double()
        self._exact = oracle.union_scores(form, *sides).float()
        form.float()
        self.forms = {LOOP: self._loop, RANK_ALL: self._rank_all, PREPARED: self._rank_prepared}
        self.items, self.chunks = dict.fromkeys(self.FORMS, mentions * entities), {LOOP: (25, 50, 100, 200)}

    def check(self, form: str, result: Tensor) -> None:
        oracle.check_ranks(result[:CHECKED], self._gold[:CHECKED], self._exact)

    def _loop(self, chunk: int) -> Tensor:
        return released_ranks(self._matcher.form(), self._left, self._right, self._gold, chunk)[0]

    def _rank_all(self) -> Tensor:
        return rank_all(self._matcher, *self._blocks, self._gold, progress=False).rank

    def _rank_prepared(self) -> Tensor:
        return rank_all(self._matcher, self._blocks[0], self._prepared, self._gold, progress=False).rank


class DropIn(Forms):
    COMPUTATIONS: ClassVar[dict[str, type[Computation]]] = {"released evaluation": RankAll}
