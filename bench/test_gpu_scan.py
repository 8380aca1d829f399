"""Ranks of all golds against the whole KB on a GPU, through the Scorer, mentions and index in its memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench import oracle
from bench.features import CHECKED, DV, LT, LV, SyntheticMentions, synthetic_model
from bench.gpu_cases import OURS, Case, Cases, Plan, Setting, Sizes
from bench.gpu_device import MARKS
from bench.gpu_timing import GPUMeasure
from bench.limits import entity_bytes, pair_work
from bench.roofline import limits
from bench.scales import WIKIMEL_ENTITIES, WIKIMEL_MENTIONS
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Side
from m3el_fast.metrics import Metrics
from m3el_fast.scorer import Scorer

pytestmark = MARKS


def plans(sizes: Sizes) -> Iterator[Plan]:
    name = f"ranks of {sizes.mentions:,} mentions among {sizes.entities:,} entities, M3EL, through the Scorer"
    yield Plan(name, (), partial(_case, sizes.mentions, sizes.entities))


def test_scan(name: str, form: str, gpu_cases: Cases, gpu_measure: GPUMeasure) -> None:
    gpu_measure.form(name, gpu_cases.get(name), form)


@torch.inference_mode()
def _case(count: int, entities: int, setting: Setting) -> Case:
    model = synthetic_model("m3el")
    index = EntityIndex.open(setting.index("m3el", entities), model)
    source, rows = SyntheticMentions(entities), torch.arange(count)
    gold = source.gold(rows)
    mentions = _moved(model.mention_side(source.inputs(rows)), setting.device)
    scores, few = torch.load(setting.expected("m3el", entities)), slice(0, CHECKED)
    scorer = Scorer(model, index, device=setting.device)

    def check(form: str, result: dict[str, Tensor]) -> dict[str, object]:
        """The ranks of a few mentions by all their scores in fp32."""
        ranks = result["union"]
        oracle.check_ranks(ranks[few], gold[few], scores)
        stats = scorer.stats
        return {"hits@1": Metrics.of(ranks).hits[1], "settled": stats.settled, "repeats": stats.repeats}

    pairs, images = count * entities, len(index.image_index.unique())
    text = limits(float(pairs * LT**2), 2.0 * pairs * LT**2 * DV, 0.0, "BF16")
    image = limits(float(count * images * LV**2), 2.0 * count * images * LV**2 * DV, 0.0, "BF16")
    return Case(
        {OURS: partial(scorer.ranks, mentions, gold)},
        check,
        pairs,
        "pairs",
        limit=max(text.values()) + max(image.values()),
        flop=pairs * pair_work("m3el", images / entities).flop,
        moved=entities * entity_bytes("m3el", images / entities),
        # three seconds for WikiMEL's whole test set
        bars={"pairs/s": WIKIMEL_MENTIONS * WIKIMEL_ENTITIES / 3.0} if count == WIKIMEL_MENTIONS else {},
    )


def _moved(side: Side, device: str) -> Side:
    assert side.image_index is not None
    item, visual = ({name: t.to(device) for name, t in tensors.items()} for tensors in (side.item, side.visual))
    return Side(item, visual, side.image_index.to(device))
