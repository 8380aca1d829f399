"""Two-stage selection: with all entities as candidates the exhaustive one bit for bit, with fewer the exact best of the
coarse score's best, in every form of the models, wherever the entities are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import recall
from bench.cases.two_stage import recall as share
from m3el_fast import ops
from m3el_fast.errors import InputError
from m3el_fast.matching import Side
from m3el_fast.scorer import Scorer, TopK
from m3el_fast.scoring import candidates as stages
from m3el_fast.scoring.entities import Block, Entities, Mapped, Resident, Streamed
from planted import check_topk, oracle
from test_scorer import FORMS
from test_scorer_device import Watch, as_on_a_gpu, meta
from test_scorer_exact import DEAD, ENTITIES, MENTIONS, TWINS, Planted, plant
from trained import trained_in

LIVE = ENTITIES - len(DEAD)
CPU = torch.device("cpu")
PLACES: dict[str, Callable[[Any], Entities]] = {
    "mapped": Mapped,
    "resident": lambda index: Resident(index, CPU),
    "streamed": lambda index: Streamed(index, CPU),
}
Open = Callable[..., Scorer]


@pytest.fixture(autouse=True)
def _scan_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on machines that would not, where the reference does it."""
    monkeypatch.setattr(ops, "scan_precision", lambda device: "bf16")


@pytest.fixture(params=PLACES)
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Makes a scorer of mapped files, or one whose entities are copied as for a GPU."""
    if request.param != "mapped":
        as_on_a_gpu({"resident": Resident, "streamed": Streamed}[request.param], monkeypatch)
    return Scorer


COARSE_WEIGHTS = {  # of the text's and the image's global vectors, t2v and v2t, by hand from spec sections 3.3 and 4
    "m3el": (1 / 6, 1 / 6, 1 / 6, 1 / 6),
    "released": (1 / 8, 1 / 8, 1 / 4, 1 / 4),
    "t2v-only": (1 / 6, 1 / 6, 1 / 3, 0),
    "masked": (1 / 6, 1 / 6, 1 / 6, 1 / 6),
    "max-pooling": (1 / 6, 1 / 6, 1 / 6, 1 / 6),
    "independent": (1 / 6, 0, 1 / 6, 1 / 6),
    "text": (1 / 2, 0, 0, 0),
    "image": (0, 1 / 2, 0, 0),
    "mimic": (1 / 6, 0, 1 / 3, 0),
}


def coarse_scores(form: str, planted: Planted) -> Tensor:
    """[M, rows] fp64."""
    left, right = planted.mentions, planted.index.side
    assert left.image_index is not None and right.image_index is not None
    total = torch.zeros(len(left.image_index), ENTITIES, dtype=torch.float64)
    for name, weight in zip(("text.global", "global", "cross.t2v", "cross.v2t"), COARSE_WEIGHTS[form], strict=True):
        if weight and name == "global":
            mention, entity = left.visual[name][left.image_index], right.visual[name][right.image_index]
            total += weight * mention.double() @ entity.double().T
        elif weight:
            total += weight * left.item[name].double() @ right.item[name].double().T
    return total


def allowed(planted: Planted, form: str, candidates: int, k: int) -> Tensor:
    """[M, rows] bool: the best by the coarse score, identical ones counting as one, of which the first k may be
    chosen."""
    groups: dict[int, list[int]] = {}
    key = key_of(planted)
    for row in planted.index.live.nonzero()[:, 0].tolist():
        groups.setdefault(int(key[row]), []).append(row)
    first = [rows[0] for rows in groups.values()]
    best = coarse_scores(form, planted)[:, first].sort(dim=1, descending=True, stable=True).indices[:, :candidates]
    chosen = torch.zeros(len(best), ENTITIES, dtype=torch.bool)
    members = list(groups.values())
    for own, group in zip(chosen, best.tolist(), strict=True):
        own[[row for number in group for row in members[number][:k]]] = True
    return chosen


def key_of(planted: Planted) -> Tensor:
    """What the union score reads."""
    matcher, index = planted.model.matcher, planted.index
    if matcher.cross is not None:
        return index.union_key
    return index.text_key if matcher.image is None else index.image_index


def check(planted: Planted, form: str, found: TopK, k: int, candidates: int) -> None:
    exact = oracle(planted.model, planted.index, planted.mentions)
    chosen = allowed(planted, form, candidates, k)
    for number, own in enumerate(chosen):
        check_topk(found.rows[number : number + 1], exact.union[number : number + 1], own)
    for name, score in found.scores.items():
        torch.testing.assert_close(score.double(), getattr(exact, name).gather(1, found.rows), rtol=1e-5, atol=1e-5)
    assert (found.scores["union"].diff(dim=1) <= 0).all()


def same(found: TopK, expected: TopK) -> None:
    assert torch.equal(found.rows, expected.rows)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0)


# -- the coarse score -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_coarse_score_has_every_inner_product_with_its_weight(form: str) -> None:
    planted = plant(form)
    coarse = planted.model.matcher.coarse(planted.mentions)
    everything = torch.ones(ENTITIES, dtype=torch.bool)
    for place in PLACES.values():
        scores, rows = stages.coarse_topk(coarse, place(planted.index), 37, everything, ENTITIES)
        expected = coarse_scores(form, planted)
        torch.testing.assert_close(scores.double(), expected.gather(1, rows), rtol=1e-5, atol=1e-5)
        assert rows.sort(dim=1).values.tolist() == [list(range(ENTITIES))] * MENTIONS


@pytest.mark.parametrize("form", FORMS)
def test_the_union_score_is_the_coarse_score_and_the_rest(form: str) -> None:
    planted = plant(form)
    index = planted.index
    scores, rows = oracle(planted.model, index, planted.mentions).union, torch.arange(ENTITIES).expand(MENTIONS, -1)
    with torch.inference_mode():
        parts = planted.model.matcher.g2l(planted.mentions, index.side)
    assert (parts is None) == (form in ("masked", "max-pooling", "independent", "mimic"))
    if parts is not None:
        none = torch.empty(MENTIONS, 0), torch.empty(ENTITIES, 0)
        rest, ids = ops.rerank_topk(*none, parts, rows.contiguous(), ENTITIES)
        total = coarse_scores(form, planted) + rest.gather(1, ids.argsort(dim=1))
        torch.testing.assert_close(total, scores, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
def test_choosing_candidates_waits_for_no_device(form: str) -> None:
    planted = plant(form)
    coarse = planted.model.matcher.coarse(planted.mentions)
    assert coarse.image_index is not None
    there = Side(meta(coarse.item), meta(coarse.visual), coarse.image_index.to("meta"))

    blocks = []
    for block in Resident(planted.index, CPU).blocks(64):
        visual: list[tuple[Any, Tensor | None]] = [(meta(tensors), None) for tensors, _ in block.visual]
        at = block.images.to("meta"), block.place.to("meta")
        blocks.append(Block(block.start, block.stop, meta(block.item), *at, visual))
    on_device: Any = SimpleNamespace(blocks=lambda size, names: blocks)
    with Watch() as watch:
        found = stages.coarse_topk(there, on_device, 64, torch.empty(ENTITIES, dtype=torch.bool, device="meta"), 20)
    assert watch.waits == 0
    assert [tensor.shape for tensor in found] == [(MENTIONS, 20)] * 2


def test_tensors_of_the_coarse_score_alone_are_copied() -> None:
    planted = plant("m3el")
    names = {"text.global", "global", "cross.t2v"}
    for place in ("resident", "streamed"):
        for block in PLACES[place](planted.index).blocks(37, names):
            ((visual, _),) = block.visual
            assert visual.keys() == {"global"}
            assert place == "resident" or block.item.keys() == {"text.global", "cross.t2v"}


# -- all entities as candidates: the exhaustive scan ------------------------------------------------------------------


def check_all_candidates(planted: Planted, make: Open) -> None:
    for precision, k in itertools.product(("exact", "fp32"), (1, 12)):
        scorer = make(planted.model, planted.index, precision, block=37)
        expected = scorer.topk(planted.mentions, k)
        for candidates in (LIVE, 10**9):
            same(scorer.topk(planted.mentions, k, candidates), expected)


@pytest.mark.parametrize("form", FORMS)
def test_with_all_candidates_it_is_the_exhaustive_scan(placed: Open, form: str) -> None:
    check_all_candidates(plant(form, dead=DEAD), placed)


@pytest.mark.parametrize("form", FORMS)
def test_and_so_it_is_of_an_fp32_index(form: str) -> None:
    check_all_candidates(plant(form, torch.float32, DEAD), Scorer)


@pytest.mark.parametrize("block", [1, 7, 64, 1000, None])
@pytest.mark.parametrize("k", [1, 5, LIVE])
def test_with_all_candidates_whatever_the_blocks(placed: Open, block: int | None, k: int) -> None:
    planted = plant("m3el", dead=DEAD, near=3e-3)
    scorer = placed(planted.model, planted.index, block=block)
    same(scorer.topk(planted.mentions, k, LIVE), scorer.topk(planted.mentions, k))


# -- fewer candidates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_fewer_candidates_are_the_best_by_the_coarse_score(placed: Open, form: str) -> None:
    planted = plant(form, dead=DEAD)
    scorer = placed(planted.model, planted.index, block=37)
    for k, candidates in ((1, 1), (1, 13), (5, 5), (5, 31), (12, 60)):
        check(planted, form, scorer.topk(planted.mentions, k, candidates), k, candidates)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions(placed: Open, precision: Any) -> None:
    planted = plant("m3el", torch.float32, near=3e-3)
    found = placed(planted.model, planted.index, precision, block=37).topk(planted.mentions, 12, 60)
    exact = oracle(planted.model, planted.index, planted.mentions).union
    chosen, near = allowed(planted, "m3el", 60, 12), 0.1 if precision == "bf16" else 1e-4
    for number, own in enumerate(chosen):
        check_topk(found.rows[number : number + 1], exact[number : number + 1], own, near)
    error = (found.scores["union"] - exact.gather(1, found.rows)).abs().max()
    assert (1e-4 < error < 0.1) if precision == "bf16" else error < 1e-4


@pytest.mark.parametrize("mentions", [1, 3, 130])
def test_blocks_of_mentions(placed: Open, mentions: int) -> None:
    planted = plant("m3el", mentions=mentions)
    check(planted, "m3el", placed(planted.model, planted.index).topk(planted.mentions, 5, 31), 5, 31)


def test_no_mentions(placed: Open) -> None:
    planted = plant("m3el")
    found = placed(planted.model, planted.index).topk(planted.mentions.take(slice(0, 0)), 3, 20)
    assert found.rows.shape == found.scores["union"].shape == (0, 3)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_twins_are_chosen_once_each_in_order_and_tie_bitwise(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "inner_scores", partial(ops.inner_scores, backend=backend))
    planted = plant("m3el")
    scorer = Scorer(planted.model, planted.index, block=13)
    both = 0
    for candidates in range(1, ENTITIES):
        found = scorer.topk(planted.mentions, candidates, candidates)
        for number, rows in enumerate(found.rows.tolist()):
            assert len(set(rows)) == len(rows)
            for row, first in TWINS.items():
                if row in rows:  # whatever rounding did to their coarse scores
                    assert first in rows[: rows.index(row)]
                    both += 1
                    for score in found.scores.values():
                        assert score[number, rows.index(row)] == score[number, rows.index(first)]
    assert both > 100


def test_only_the_first_k_of_many_twins_are_candidates(placed: Open) -> None:
    planted = plant("m3el")
    for tensor in (*planted.index.side.item.values(), *planted.index.side.visual.values()):
        tensor[:] = tensor[:1].clone()
    for key in (planted.index.text_key, planted.index.image_index, planted.index.union_key):
        key[:] = 0
    found = placed(planted.model, planted.index, block=13).topk(planted.mentions, 5, 40)
    assert found.rows.tolist() == [list(range(5))] * MENTIONS
    assert (found.scores["union"] == found.scores["union"][:, :1]).all()


def test_removed_entities_are_no_candidates(placed: Open) -> None:
    planted = plant("m3el", dead=tuple(range(7, ENTITIES)))
    found = placed(planted.model, planted.index, block=13).topk(planted.mentions, 5, 100)
    check(planted, "m3el", found, 5, 100)


def test_scores_that_are_no_number_come_last(placed: Open) -> None:
    planted = plant("m3el")
    wrong = [2, 70, 140]
    planted.index.side.item["text.global"][wrong] = torch.inf  # times a mention's values of both signs: NaN
    found = placed(planted.model, planted.index, block=37).topk(planted.mentions, ENTITIES, ENTITIES)
    assert found.rows[:, -3:].tolist() == [wrong] * MENTIONS


def test_where_no_score_is_a_number_candidates_are_entities_all_the_same(placed: Open) -> None:
    planted = plant("m3el", dead=DEAD)
    planted.index.side.item["text.global"][:] = torch.inf
    found = placed(planted.model, planted.index, block=37).topk(planted.mentions, 1, 1000)
    assert found.rows.tolist() == [[1]] * MENTIONS  # 0 is removed


# -- what is done -----------------------------------------------------------------------------------------------------


def test_counts(placed: Open) -> None:
    planted = plant("m3el", dead=DEAD)
    scorer = placed(planted.model, planted.index)
    scorer.topk(planted.mentions, 3, 20)
    stats = scorer.stats
    assert (stats.scanned, stats.reranked, stats.repeats) == (MENTIONS * ENTITIES, MENTIONS * 20, 0)
    first = stats.settled
    line = f"{stats.scanned:,} pairs scanned, {stats.reranked:,} candidates reranked, {first:,} scored again"
    assert stats.describe().startswith(line)
    scorer.topk(planted.mentions, 1, 1000)
    assert scorer.stats.reranked == MENTIONS * (20 + LIVE - 2)  # identical ones once
    assert MENTIONS <= scorer.stats.settled - first < 20 * MENTIONS  # the best of each, and far from all


def test_the_scan_itself_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant("m3el")
    scorer = Scorer(planted.model, planted.index)
    scorer.topk(planted.mentions, 1, 2)  # the first margins come from a scan

    def scan(*_: Any, **__: Any) -> Any:
        raise AssertionError("all pairs are scored")

    monkeypatch.setattr(ops, "g2l_scores", scan)
    scorer.topk(planted.mentions, 3, 20)


@pytest.mark.parametrize("form", FORMS)
def test_a_resident_index_is_reranked_in_place(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant(form, dead=DEAD)
    real, calls = ops.rerank_topk, []

    def rerank(*args: Any, **options: Any) -> Any:
        calls.append((args[3].shape, options["precision"]))
        return real(*args, **options)

    monkeypatch.setattr(ops, "rerank_topk", rerank)
    monkeypatch.setattr(stages, "_PAIRS", 67)
    scorer = as_on_a_gpu(Resident, monkeypatch)(planted.model, planted.index)
    check(planted, form, scorer.topk(planted.mentions, 5, 31), 5, 31)
    served = planted.model.matcher.g2l(planted.mentions, planted.index.side) is not None
    assert served == bool(calls)
    assert all(call == ((2, 31), "bf16") or call == ((1, 31), "bf16") for call in calls)
    assert sum(shape[0] for shape, _ in calls) == (MENTIONS if served else 0)


def test_an_error_beyond_half_the_margin_settles_again(placed: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant("m3el", dead=DEAD)
    real = stages.Reranker.scores

    def off(self: stages.Reranker, mentions: Any, coarse: Tensor, rows: Tensor) -> Tensor:
        return real(self, mentions, coarse, rows) + 3 * torch.sin(rows * 1.7)

    monkeypatch.setattr(stages.Reranker, "scores", off)
    scorer = placed(planted.model, planted.index, block=37)
    check(planted, "m3el", scorer.topk(planted.mentions, 5, 60), 5, 60)
    assert scorer.stats.repeats > 0
    assert scorer.stats.margin["union"] >= 2 * scorer.stats.error["union"] > 1
    monkeypatch.setattr("m3el_fast.scoring.margins.Margins.holds", lambda *_: True)
    with pytest.raises(AssertionError):  # the planted error does change results
        check(planted, "m3el", placed(planted.model, planted.index, block=37).topk(planted.mentions, 5, 60), 5, 60)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (True, "candidates: expected ids for each mention, or a whole number, got True"),
        (20.0, "candidates: expected ids for each mention, or a whole number, got 20.0"),
        (0, r"candidates: expected at least 3 \(k\), got 0"),
        (-1, r"candidates: expected at least 3 \(k\), got -1"),
        (2, r"candidates: expected at least 3 \(k\), got 2"),
    ],
)
def test_numbers_that_are_refused(candidates: Any, message: str) -> None:
    planted = plant("m3el")
    with pytest.raises(InputError, match=message):
        Scorer(planted.model, planted.index).topk(planted.mentions, 3, candidates)


def test_k_is_checked_as_ever() -> None:
    planted = plant("m3el", dead=DEAD)
    for k in (0, LIVE + 1):
        with pytest.raises(InputError, match=rf"k: expected 1 to {LIVE} \(the number of entities\), got {k}"):
            Scorer(planted.model, planted.index).topk(planted.mentions, k, 1000)


def test_a_form_without_inner_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "dual", {"text": False, "cross": False, "intra_modal": "independent"})
    planted = plant("dual")
    scorer = Scorer(planted.model, planted.index)
    for mentions in (planted.mentions, planted.mentions.take(slice(0, 0))):
        message = "candidates: expected ids or nothing: no term of this model's union score is an inner product"
        with pytest.raises(InputError, match=message):
            scorer.topk(mentions, 3, 20)
    assert scorer.topk(planted.mentions, 3).rows.shape == (MENTIONS, 3)


# -- the curve --------------------------------------------------------------------------------------------------------


def test_the_recall_of_a_trained_model(tmp_path: Path) -> None:
    for trained in trained_in(tmp_path):
        recall.main([trained.checkpoint, "--output", str(tmp_path / "recall.json")])
    record = json.loads((tmp_path / "recall.json").read_text())
    whole, *lines = record["curve"]
    assert (record["mentions"], record["entities"], whole["candidates"]) == (24, 12, 12)
    assert [line["candidates"] for line in lines] == [10, 30, 100, 300, 1000]
    assert whole["recall of the best 1"] == whole["recall of the best 10"] == 1
    assert 0.7 < lines[0]["recall of the best 10"] <= 1  # ten of twelve
    for line in lines[1:]:  # all of twelve
        assert {k: v for k, v in line.items() if k not in ("seconds", "candidates")} == {
            k: v for k, v in whole.items() if k not in ("seconds", "candidates")
        }


def test_recall_is_the_share_of_the_best_that_was_found() -> None:
    exact, found = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[3, 1, 9], [5, -1, -1]])
    assert share(found, exact, 1) == 0.5
    assert share(found, exact, 3) == 0.5
    assert share(found, exact, 2) == 0.5
    assert share(exact, exact, 3) == 1.0
