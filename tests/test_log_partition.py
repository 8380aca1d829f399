"""The log partition of a scan, of candidates and of two stages is the log-sum-exp of exact scores in fp64: with ties,
removed entities, errors of the scan and scores that are no number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.errors import InputError
from m3el_fast.scorer import Scorer, TopK
from m3el_fast.scoring.partition import Partition, log_partition
from planted import oracle
from test_scorer_exact import DEAD, ENTITIES, MENTIONS, Planted, plant, plant_error
from test_two_stage import allowed

KELVIN = (0.05, 0.3, 1.0, 7.5, 100.0)


@pytest.fixture(autouse=True)
def _scan_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on machines that would not, where the reference does it."""
    monkeypatch.setattr(ops, "scan_precision", lambda device: "bf16")


def expected(planted: Planted, counted: Tensor) -> Tensor:
    """[M, T] over the entities ``counted``, [rows] or [M, rows] bool, by the reference in fp64."""
    score = oracle(planted.model, planted.index, planted.mentions).union.masked_fill(~counted, -torch.inf)
    return torch.stack([torch.logsumexp(score / temperature, dim=1) for temperature in KELVIN], dim=1)


def close(found: TopK, wanted: Tensor, error: float) -> None:
    """Within ``error`` / temperature, the bound that is stated, and what fp32 rounds of scores of about 50."""
    logs = found.log_partition
    assert logs is not None and logs.dtype == torch.float64
    assert logs.shape == wanted.shape
    bound = (error + 2e-5) / torch.tensor(KELVIN, dtype=torch.float64)
    assert ((logs - wanted).abs() <= bound).all()


@pytest.mark.parametrize("block", [1, 37, None])
@pytest.mark.parametrize("form", ["m3el", "mimic", "text", "image"])
def test_of_all_entities(form: str, block: int | None) -> None:
    planted = plant(form, dead=DEAD)
    wanted = expected(planted, planted.index.live)
    assert not torch.allclose(wanted, expected(planted, torch.ones_like(planted.index.live)), atol=1e-3)
    for precision in ("exact", "fp32"):
        scorer = Scorer(planted.model, planted.index, precision, block=block)
        found = scorer.topk(planted.mentions, 3, temperatures=KELVIN)
        close(found, wanted, scorer.stats.error["union"])
        # where all are settled, nothing of the scan's error is left
        close(scorer.topk(planted.mentions, len(planted.index), temperatures=KELVIN), wanted, 0.0)
        assert scorer.topk(planted.mentions, 3).log_partition is None


def test_settled_scores_stand_in_for_scanned_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a low temperature the best entities are all that counts, and these are settled."""
    planted = plant("m3el", dead=DEAD)
    scorer = Scorer(planted.model, planted.index, block=37)
    bound = 1e-4 / KELVIN[0]
    for candidates in (None, ENTITIES):
        logs = scorer.topk(planted.mentions, 12, candidates, temperatures=KELVIN).log_partition
        assert logs is not None
        assert ((logs - expected(planted, planted.index.live)).abs()[:, 0] < bound).all()
    monkeypatch.setattr(Partition, "replace", lambda *_: None)
    raw = scorer.topk(planted.mentions, 12, temperatures=KELVIN).log_partition
    assert raw is not None
    assert ((raw - expected(planted, planted.index.live)).abs()[:, 0] > bound).any()


def test_a_repeated_scan_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant("m3el", dead=DEAD)
    plant_error(monkeypatch, 6.0)
    scorer = Scorer(planted.model, planted.index, block=37)
    found = scorer.topk(planted.mentions, len(planted.index), temperatures=KELVIN)
    assert scorer.stats.repeats > 0
    close(found, expected(planted, planted.index.live), 0.0)


def test_ranks_and_the_best_in_one_scan() -> None:
    planted = plant("m3el", dead=DEAD, mentions=130)
    apart, together = (Scorer(planted.model, planted.index, block=37) for _ in range(2))
    ranks, top = together.ranks_and_topk(planted.mentions, planted.gold, 5, KELVIN)
    best = apart.topk(planted.mentions, 5, temperatures=KELVIN)
    once = apart.stats.scanned
    torch.testing.assert_close(ranks, apart.ranks(planted.mentions, planted.gold), rtol=0, atol=0)
    assert torch.equal(top.rows, best.rows)
    torch.testing.assert_close(top.scores, best.scores, rtol=0, atol=0)
    close(top, expected(planted, planted.index.live), together.stats.error["union"])
    assert together.stats.scanned == once


def test_of_given_candidates() -> None:
    """They may repeat, and count once; twins count one by one; of none there is nothing."""
    planted = plant("m3el")
    lists = [[], [5], [0, 3, 47, 149], [7, 7, 7, 9], list(range(ENTITIES)), [100, 101], [20], [1, 2], [3, 60]]
    counted = torch.zeros(MENTIONS, ENTITIES, dtype=torch.bool)
    for own, rows in zip(counted, lists, strict=True):
        own[rows] = True
    rows = [torch.tensor(own, dtype=torch.int64) for own in lists]
    found = Scorer(planted.model, planted.index).topk(planted.mentions, 4, rows, KELVIN)
    wanted = expected(planted, counted)
    assert found.log_partition is not None
    assert (found.log_partition[0] == -torch.inf).all() and (wanted[0] == -torch.inf).all()
    found = TopK(found.rows, found.scores, found.log_partition[1:])
    close(found, wanted[1:], 0.0)


@pytest.mark.parametrize("form", ["m3el", "mimic"])
@pytest.mark.parametrize("candidates", [4, 29, ENTITIES])
def test_of_two_stages(candidates: int, form: str) -> None:
    """Of entities that are identical to a candidate each one counts."""
    planted = plant(form, dead=DEAD)
    scorer = Scorer(planted.model, planted.index, block=37)
    found = scorer.topk(planted.mentions, 3, candidates, KELVIN)
    close(found, expected(planted, allowed(planted, form, candidates, ENTITIES)), scorer.stats.error["union"])


@pytest.mark.parametrize("precision", ["exact", "fp32", "bf16"])
def test_scores_that_are_no_number_weigh_nothing(precision: Any) -> None:
    planted = plant("m3el")
    wrong = [2, 70, 140]
    counted = torch.ones(ENTITIES, dtype=torch.bool)
    counted[wrong] = False
    wanted = expected(planted, counted)
    planted.index.side.item["text.global"][wrong] = torch.inf
    scorer = Scorer(planted.model, planted.index, precision, block=37)
    close(scorer.topk(planted.mentions, 3, temperatures=KELVIN), wanted, 0.05 if precision == "bf16" else 2e-2)


def test_no_mention_and_bad_temperatures() -> None:
    planted = plant("m3el")
    scorer, none = Scorer(planted.model, planted.index), planted.mentions.take(slice(0, 0))
    for candidates in (None, [], 5):
        logs = scorer.topk(none, 3, candidates, (1.0, 2.0)).log_partition
        assert logs is not None and logs.shape == (0, 2)
    for bad in (0.0, -1.0, 1e-46, 1e39, float("nan"), float("inf")):
        with pytest.raises(InputError, match="temperatures: expected numbers above 0 of fp32's range, got"):
            scorer.topk(planted.mentions, 3, temperatures=(1.0, bad))


@pytest.mark.parametrize("block", [1, 3, 50])
def test_sums_of_any_size(block: int) -> None:
    """Scores far apart, infinite ones, blocks without any; the same in one go."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 50, generator=generator) * torch.tensor([[1e-3], [1.0], [30.0], [1e4], [1e37]])
    scores[1, :40] = -torch.inf
    scores[2] = -torch.inf
    counted = torch.rand(50, generator=generator) > 0.3
    partition = Partition(5, KELVIN, torch.device("cpu"))
    for start in range(0, 50, block):
        rows = slice(start, start + block)
        partition.add(scores[:, rows], counted[rows])
    masked = scores.masked_fill(~counted, -torch.inf)
    wanted = torch.stack([torch.logsumexp(masked.double() / t, dim=1) for t in KELVIN], dim=1)
    torch.testing.assert_close(partition.value(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_partition(masked, None, KELVIN), wanted, rtol=1e-12, atol=1e-12)
    gone = Partition(1, KELVIN, torch.device("cpu"))
    gone.add(scores[:1], counted)
    own = scores[0, counted]
    gone.replace(torch.zeros(len(own), dtype=torch.int64), own, torch.full_like(own, -1e9))
    assert not gone.value().isnan().any()  # what rounding leaves may be below 0
    infinite = Partition(1, (2.0,), torch.device("cpu"))
    infinite.add(torch.tensor([[torch.inf, 3.0, torch.inf]]), torch.ones(3, dtype=torch.bool))
    largest = torch.finfo(torch.float32).max
    torch.testing.assert_close(infinite.value(), torch.tensor([[largest / 2]], dtype=torch.float64))


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["m3el", "mimic"])
def test_on_a_gpu(form: str) -> None:
    planted = plant(form, dead=DEAD)
    scorer = Scorer(planted.model, planted.index, device="cuda", block=37)
    wanted = expected(planted, planted.index.live)
    for candidates in (None, ENTITIES):
        found = scorer.topk(planted.mentions, 3, candidates, KELVIN)
        close(found, wanted, scorer.stats.error["union"])
    rows = [planted.index.live.nonzero()[:, 0]] * MENTIONS
    close(scorer.topk(planted.mentions, 3, rows, KELVIN), wanted, 0.0)
