"""Scorer against fp64: the k best and the ranks are those of exact arithmetic on the stored features, in every form of
the models, whatever the blocks, the index's dtype, near ties, twins, removed entities and errors of the scan."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.errors import InputError
from m3el_fast.matching import Side
from m3el_fast.models import MELModel
from m3el_fast.scorer import COMPONENTS, Scorer
from m3el_fast.units import IntraModal
from planted import MemoryIndex, check_ranks, check_topk, oracle, random_features
from test_scorer import FORMS
from tiny import tiny_config, tiny_model

ENTITIES, MENTIONS = 150, 9
TWINS = {3: 0, 47: 0, 149: 0, 20: 19, 101: 100}  # row -> the earlier row that it equals
DEAD = (0, 19, 50, 149)


@dataclass
class Planted:
    """A model with random weights, an index over random entities, and mentions close to some of them."""

    model: MELModel
    index: MemoryIndex
    mentions: Side
    gold: Tensor


def plant(
    form: str,
    dtype: torch.dtype = torch.bfloat16,
    dead: tuple[int, ...] = (),
    near: float = 0.0,
    mentions: int = MENTIONS,
) -> Planted:
    """Twins after TWINS; with ``near`` entities 60..89 differ from entity 30 by noise of that size."""
    model = tiny_model(tiny_config(Path("unused"), FORMS[form])).eval()
    for matching in (model.matcher.text, model.matcher.image):
        if isinstance(matching, IntraModal):  # attention as sharp as a trained model's
            matching.query.weight.data *= 6
            matching.value.weight.data *= 6
    dims = model.encoder.dims
    entity = random_features(dims, ENTITIES, 100, seed=1)
    text_key = torch.arange(ENTITIES)
    assert entity.image_index is not None
    for row, first in TWINS.items():
        for tensor in (entity.text_global, entity.text_local, entity.image_index, entity.text_mask, text_key):
            tensor[row] = tensor[first]
    if near:
        g = torch.Generator().manual_seed(4)
        entity.image_index[60:90] = entity.image_index[30]
        for tensor in (entity.text_global, entity.text_local):
            noise = near * torch.randn(30, *tensor.shape[1:], generator=g)
            tensor[60:90] = tensor[30] + noise
        entity.text_mask[60:90] = entity.text_mask[30]
    with torch.no_grad():
        side = model.matcher.entity_side(entity)
        left = model.matcher.mention_side(random_features(dims, mentions, 6, seed=2))
    index = MemoryIndex(side, text_key, dtype, dead, cuts=(64, 97), visual_cuts=(41,))
    gold = torch.tensor([row for row in [30, 47, 20, 149, 5, 6, 7, 60, 101] * 10 if row not in dead])[:mentions]
    return Planted(model, index, left, gold.repeat(mentions)[:mentions])


def check(planted: Planted, scorer: Scorer, k: int = 12) -> None:
    exact = oracle(planted.model, planted.index, planted.mentions)
    found = scorer.topk(planted.mentions, k)
    check_topk(found.rows, exact.union, planted.index.live)
    assert found.scores.keys() == {name for name, score in vars(exact).items() if score is not None}
    for name, score in found.scores.items():
        torch.testing.assert_close(score.double(), getattr(exact, name).gather(1, found.rows), rtol=1e-5, atol=1e-5)
    assert (found.scores["union"].diff(dim=1) <= 0).all()
    ranks = scorer.ranks(planted.mentions, planted.gold)
    assert ranks.keys() == {name for name in COMPONENTS if getattr(exact, name) is not None}
    for name, rank in ranks.items():
        assert rank.dtype == torch.float64
        check_ranks(rank, planted.gold, getattr(exact, name), key_of(planted, name), planted.index.live)


def key_of(planted: Planted, component: str) -> Tensor:
    matcher, index = planted.model.matcher, planted.index
    if component == "union" and matcher.cross is None:
        component = {(True, False): "text", (False, True): "image"}.get(
            (matcher.text is not None, matcher.image is not None), "union"
        )
    return {"text": index.text_key, "image": index.image_index}.get(component, index.union_key)


@pytest.fixture(autouse=True)
def _scan_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on machines that would not, where the reference does it."""
    monkeypatch.setattr(ops, "scan_precision", lambda device: "bf16")


# -- the oracle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("form", FORMS)
def test_exact_in_every_form(form: str, dtype: torch.dtype) -> None:
    planted = plant(form, dtype, DEAD)
    check(planted, Scorer(planted.model, planted.index, block=37))
    check(planted, Scorer(planted.model, planted.index, "fp32", block=37))


@pytest.mark.parametrize("block", [1, 7, 64, 1000, None])
@pytest.mark.parametrize("k", [1, 2, 5, 146])
def test_exact_whatever_the_blocks(block: int | None, k: int) -> None:
    planted = plant("m3el", dead=DEAD)
    check(planted, Scorer(planted.model, planted.index, block=block), k)


@pytest.mark.parametrize("form", ["m3el", "mimic", "text"])
def test_near_ties_inside_the_error_of_bf16_are_settled(form: str) -> None:
    planted = plant(form, torch.float32, near=3e-3)
    scorer = Scorer(planted.model, planted.index, block=31)
    check(planted, scorer, 40)
    exact = oracle(planted.model, planted.index, planted.mentions).union
    scan = Scorer(planted.model, planted.index, "bf16").topk(planted.mentions, 40).rows
    wrong = (exact.gather(1, scan) - exact.topk(40, dim=1).values).abs() > 1e-4
    assert wrong.any()  # bf16 alone gets them wrong
    stats = scorer.stats
    assert 0 < stats.error["union"] <= stats.margin["union"] / 2
    assert stats.settled > 0


def test_more_mentions_than_a_block_holds() -> None:
    planted = plant("m3el", mentions=130)
    check(planted, Scorer(planted.model, planted.index))


def test_twins_in_different_blocks_and_files_tie_bitwise() -> None:
    planted = plant("m3el")
    scorer = Scorer(planted.model, planted.index, block=13)
    everything = scorer.topk(planted.mentions, ENTITIES)
    place = everything.rows.argsort(dim=1)
    for name, score in (everything.scores | {"whole": scorer.scores(planted.mentions)}).items():
        by_row = score if name == "whole" else score.gather(1, place)
        for row, first in TWINS.items():
            assert torch.equal(by_row[:, row], by_row[:, first]), name
    for row, first in TWINS.items():
        assert (place[:, first] < place[:, row]).all()  # ties go to the lower row
        gold = torch.full((MENTIONS,), row)
        ranks = [scorer.ranks(planted.mentions, one)["union"] for one in (gold, torch.full_like(gold, first))]
        assert torch.equal(*ranks)
        identical = sum(TWINS.get(other, other) == first for other in range(ENTITIES))
        assert (ranks[0] % 1 == (identical - 1) / 2 % 1).all()


def test_only_the_first_k_of_many_twins_are_chosen() -> None:
    planted = plant("m3el")
    planted.index.text_key[:] = 0
    planted.index.image_index[:] = 0
    planted.index.union_key[:] = 0
    best = Scorer(planted.model, planted.index, block=13).topk(planted.mentions, 5)
    assert best.rows.tolist() == [list(range(5))] * MENTIONS
    assert (best.scores["union"] == best.scores["union"][:, :1]).all()


# -- errors of the scan -----------------------------------------------------------------------------------------------


def plant_error(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """Text scans of rows from 64 on are off by up to ``error``, which no sample of the first block can know of."""
    real = ops.g2l_scores

    def off(query: Tensor, *args: Any, **options: Any) -> Tensor:
        scores = real(query, *args, **options)
        if options["precision"] == "bf16" and options["rows"] is None:
            start = query.storage_offset() // query[0].numel()
            if start >= 64:
                scores = scores + error * torch.sin(torch.arange(start, start + len(query)) * 1.7)
        return scores

    monkeypatch.setattr(ops, "g2l_scores", off)


def test_an_error_beyond_half_the_margin_widens_it_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant("m3el", dead=DEAD)
    plant_error(monkeypatch, 6.0)
    scorer = Scorer(planted.model, planted.index, block=37)
    check(planted, scorer)
    stats = scorer.stats
    assert stats.repeats > 0
    for name in ("union", "text"):
        assert stats.error[name] > 0.3
        assert stats.margin[name] >= 2 * stats.error[name]
    assert stats.margin["image"] < 0.3
    assert stats.scanned > 2 * MENTIONS * ENTITIES
    monkeypatch.setattr("m3el_fast.scoring.margins.Margins.holds", lambda *_: True)
    with pytest.raises(AssertionError):  # the planted error does change results
        check(planted, Scorer(planted.model, planted.index, block=37))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_other_precisions(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant("m3el", dead=DEAD)
    scorer = Scorer(planted.model, planted.index, precision, block=37)
    exact = oracle(planted.model, planted.index, planted.mentions)
    near = 0.05 if precision == "bf16" else 1e-4
    check_topk(scorer.topk(planted.mentions, 12).rows, exact.union, planted.index.live, near)
    for name, ranks in scorer.ranks(planted.mentions, planted.gold).items():
        check_ranks(ranks, planted.gold, getattr(exact, name), key_of(planted, name), planted.index.live, near)
    error = (scorer.scores(planted.mentions) - exact.union[:, planted.index.live]).abs().max()
    assert (1e-4 < error < 0.05) if precision == "bf16" else error < 1e-4
    assert scorer.stats.margin["union"] < 1e-4
    # errors of bf16 stay: nothing is repeated because of them
    plant_error(monkeypatch, 6.0)
    scorer = Scorer(planted.model, planted.index, precision, block=37)
    scorer.ranks(planted.mentions, planted.gold)
    assert scorer.stats.repeats == 0


# -- candidates, all scores, threads ----------------------------------------------------------------------------------


def test_candidates() -> None:
    planted = plant("m3el", dead=DEAD)
    scorer = Scorer(planted.model, planted.index)
    exact = oracle(planted.model, planted.index, planted.mentions).union
    g = torch.Generator().manual_seed(0)
    live = planted.index.live.nonzero()[:, 0]
    rows = [live[torch.randint(0, len(live), (count,), generator=g)] for count in (0, 1, 2, 3, 9, 40, 100, 3, 146)]
    ids = [[planted.index.ids[row] for row in one.tolist()] for one in rows]
    found = scorer.topk(planted.mentions, 5, ids)
    for number, own in enumerate(rows):
        chosen = min(5, len(own.unique()))
        allowed = torch.zeros_like(planted.index.live)
        allowed[own] = True
        if chosen:
            check_topk(found.rows[number : number + 1, :chosen], exact[number : number + 1], allowed)
        assert (found.rows[number, chosen:] == -1).all()
        for score in found.scores.values():
            assert (score[number, chosen:] == -torch.inf).all()
    assert scorer.stats.scanned == 0
    mixed = [row if number % 2 else one for number, (row, one) in enumerate(zip(rows, ids, strict=True))]
    assert torch.equal(scorer.topk(planted.mentions, 5, mixed).rows, found.rows)
    components = scorer.components(planted.mentions, ids)
    assert components.keys() == found.scores.keys()
    for number, own in enumerate(rows):
        expected = exact[number, own].float()
        torch.testing.assert_close(components["union"][number, : len(own)], expected, rtol=1e-5, atol=1e-5)
        assert (components["union"][number, len(own) :] == -torch.inf).all()


def test_all_scores() -> None:
    planted = plant("released", dead=DEAD)
    scorer = Scorer(planted.model, planted.index, block=37)
    exact = oracle(planted.model, planted.index, planted.mentions)
    live = planted.index.live
    components = scorer.components(planted.mentions)
    assert components.keys() == {name for name, score in vars(exact).items() if score is not None}
    for name, score in components.items():
        torch.testing.assert_close(score.double(), getattr(exact, name)[:, live], rtol=1e-5, atol=1e-5)
    assert torch.equal(scorer.scores(planted.mentions), components["union"])


def test_several_threads_at_once() -> None:
    planted = plant("m3el", dead=DEAD)
    lonely = Scorer(planted.model, planted.index, block=37)
    topk, ranks = lonely.topk(planted.mentions, 7), lonely.ranks(planted.mentions, planted.gold)
    shared = Scorer(planted.model, planted.index, block=37)
    with ThreadPoolExecutor(8) as pool:
        tops = [pool.submit(shared.topk, planted.mentions, 7) for _ in range(12)]
        counts = [pool.submit(shared.ranks, planted.mentions, planted.gold) for _ in range(12)]
    for top in tops:
        assert torch.equal(top.result().rows, topk.rows)
        torch.testing.assert_close(top.result().scores, topk.scores)
    for count in counts:
        torch.testing.assert_close(count.result(), ranks, rtol=0, atol=0)
    assert shared.stats.scanned >= 24 * MENTIONS * ENTITIES


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["m3el", "mimic", "masked"])
def test_on_another_device_than_the_model(form: str) -> None:
    planted = plant(form, dead=DEAD)
    check(planted, Scorer(planted.model, planted.index, device="cuda", block=37))


def test_no_mentions() -> None:
    planted = plant("m3el")
    scorer, none = Scorer(planted.model, planted.index), planted.mentions.take(slice(0, 0))
    assert scorer.topk(none, 3).rows.shape == (0, 3)
    assert scorer.topk(none, 3, []).rows.shape == (0, 3)
    ranks = scorer.ranks(none, torch.zeros(0, dtype=torch.int64))
    assert {name: len(rank) for name, rank in ranks.items()} == dict.fromkeys(COMPONENTS, 0)
    assert scorer.scores(none).shape == (0, ENTITIES)
    assert scorer.components(none, [])["union"].shape == (0, 0)
    check(planted, scorer)  # the margins do not come from no mention


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite(value: float) -> None:
    planted = plant("m3el")
    scorer = Scorer(planted.model, planted.index)
    for kind, number in (("item", 4), ("visual", 3)):
        tensors = {name: tensor.clone() for name, tensor in getattr(planted.mentions, kind).items()}
        name = next(iter(tensors))
        tensors[name][number - 1, 0] = value
        bad = replace(planted.mentions, **{kind: tensors})
        what = "mention" if kind == "item" else "image"
        message = f"mentions, {what} {number}: expected finite features, got NaN or infinity in {name}"
        for call in (lambda bad=bad: scorer.topk(bad, 3), lambda bad=bad: scorer.ranks(bad, planted.gold)):
            with pytest.raises(InputError, match=message):
                call()


@pytest.mark.parametrize("precision", ["exact", "fp32", "bf16"])
def test_scores_that_are_no_number_never_win(precision: Any) -> None:
    planted = plant("m3el")
    wrong = [2, 70, 140]
    planted.index.side.item["text.global"][wrong] = torch.inf  # times a mention's values of both signs: NaN
    scorer = Scorer(planted.model, planted.index, precision, block=37)
    assert (scorer.scores(planted.mentions)[:, wrong] == -torch.inf).all()
    for found in scorer.topk(planted.mentions, ENTITIES - 3).rows.tolist():
        assert sorted([*found, *wrong]) == list(range(ENTITIES))
    last = scorer.topk(planted.mentions, ENTITIES).rows[:, -3:]
    assert last.tolist() == [wrong] * MENTIONS
    ranks = scorer.ranks(planted.mentions, torch.full((MENTIONS,), 5))
    assert (ranks["union"] <= ENTITIES - 3).all()
    assert (scorer.ranks(planted.mentions, torch.full((MENTIONS,), 70))["union"] == ENTITIES - 3 + 1 + 1).all()


def test_bad_calls() -> None:
    planted = plant("m3el", dead=DEAD)
    scorer, mentions, gold = Scorer(planted.model, planted.index), planted.mentions, planted.gold
    for k in (0, 147):
        with pytest.raises(InputError, match=rf"k: expected 1 to 146 \(the number of entities\), got {k}"):
            scorer.topk(mentions, k)
    ids = [["Q1"]] * MENTIONS
    with pytest.raises(InputError, match="candidates: expected one list of ids for each of 9 mentions, got 8"):
        scorer.topk(mentions, 1, ids[:8])
    for wrong, got in ((["Q1", "Q999"], "'Q999'"), (["Q50"], "'Q50'"), ([7], r"\[7\]"), ("Q1", "'Q1'")):
        with pytest.raises(InputError, match=f"candidates, mention 3: expected .*, got {got}"):
            scorer.topk(mentions, 1, [*ids[:2], wrong, *ids[3:]])
    for rows, got in (
        (torch.tensor([1, 150]), "row 150"),
        (torch.tensor([-1]), "row -1"),
        (torch.tensor([1, 50]), "row 50"),
        (torch.tensor([1.0]), r"torch.float32 of shape \(1,\)"),
        (torch.tensor([[1]]), r"torch.int64 of shape \(1, 1\)"),
    ):
        with pytest.raises(InputError, match=f"candidates, mention 3: expected .*, got {got}"):
            scorer.topk(mentions, 1, [*ids[:2], rows, *ids[3:]])
    for row, got in ((150, "150, no row of it"), (-1, "-1, no row of it"), (50, "50, a removed entity")):
        bad = gold.clone()
        bad[4] = row
        with pytest.raises(InputError, match=f"gold, mention 5: expected a row of the index, 0 to 149, got {got}"):
            scorer.ranks(mentions, bad)
    with pytest.raises(InputError, match=r"gold: expected one row for each of 9 mentions, got shape \(8,\)"):
        scorer.ranks(mentions, gold[:8])
    with pytest.raises(InputError, match="precision: expected exact, bf16 or fp32, got fp16"):
        Scorer(planted.model, planted.index, "fp16")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="block: expected at least 1, got 0"):
        Scorer(planted.model, planted.index, block=0)
