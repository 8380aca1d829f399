"""Scorer on a real GPU: exact, entities whole and in time, no more memory and no more waits than stated."""

from __future__ import annotations

import pytest
import torch

from m3el_fast.matching import Side
from m3el_fast.scorer import COMPONENTS, Scorer
from m3el_fast.scoring import entities
from m3el_fast.scoring.entities import Streamed
from planted import MemoryIndex
from test_scorer import FORMS
from test_scorer_device import PLACES, Open, same
from test_scorer_exact import DEAD, check, plant

pytestmark = pytest.mark.gpu


@pytest.fixture(params=PLACES)
def on_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setattr(entities, "fits", lambda needed, free: request.param == "resident")
    return lambda *args, **options: Scorer(*args, device="cuda", **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [37, None])
def test_gpu_is_exact(on_gpu: Open, form: str, block: int | None) -> None:
    planted = plant(form, dead=DEAD)
    scorer = on_gpu(planted.model, planted.index, block=block)
    check(planted, scorer)
    same(planted, scorer, Scorer(planted.model, planted.index))


def test_gpu_tensors_from_the_model_are_scored_where_they_are(on_gpu: Open) -> None:
    planted = plant("m3el", dead=DEAD, mentions=60)
    planted.model.cuda()
    planted.mentions = Side(
        {name: tensor.cuda() for name, tensor in planted.mentions.item.items()},
        {name: tensor.cuda() for name, tensor in planted.mentions.visual.items()},
        planted.mentions.image_index.cuda(),  # type: ignore[union-attr]
    )
    scorer = on_gpu(planted.model, planted.index)
    found = scorer.topk(planted.mentions, 5), scorer.ranks(planted.mentions, planted.gold.cuda())
    assert {t.device.type for t in (found[0].rows, *found[0].scores.values(), *found[1].values())} == {"cpu"}
    expected = Scorer(planted.model.cpu(), planted.index)
    assert torch.equal(found[0].rows, expected.topk(planted.mentions, 5).rows)
    torch.testing.assert_close(found[1], expected.ranks(planted.mentions, planted.gold), rtol=0, atol=0)


@pytest.mark.parametrize("place", PLACES)
def test_gpu_blocks_arrive_whole_behind_a_busy_stream(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entities, "_STAGED", 1 << 20)
    index = large_index(200_000)
    found = PLACES[place](index, torch.device("cuda", 0))
    want = index.side.item["text.global"].cuda()
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for block in found.blocks(10_000):
        torch.cuda._sleep(1_000_000)  # what uses a block runs long after it was given up here
        wrong += (block.item["text.global"] != want[block.start : block.stop]).sum()
    assert int(wrong) == 0


def test_gpu_memory_of_a_streamed_index_is_that_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entities, "_STAGED", 1 << 20)
    index = large_index(200_000)
    held = index.live.nbytes + index.image_index.nbytes
    assert entities._bytes(index) > 40 << 20
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in Streamed(index, torch.device("cuda", 0)).blocks(1 << 30):
        torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - base < held + (6 << 20)


def test_gpu_scoring_a_block_does_not_wait(on_gpu: Open) -> None:
    planted = plant("m3el")
    scorer = on_gpu(planted.model, planted.index)
    scorer.ranks(planted.mentions, planted.gold)  # everything is compiled
    [(_, mentions)] = scorer._blocks(planted.mentions)
    blocks = list(scorer._entities.blocks(100))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            for block in blocks:
                scorer._scanner.score(mentions, block, COMPONENTS)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def large_index(rows: int) -> MemoryIndex:
    """Of vectors alone."""
    vectors = torch.randn(rows, 64, generator=torch.Generator().manual_seed(3))
    side = Side({"text.global": vectors}, {"gate": vectors[: rows // 2]}, torch.arange(rows) // 2)
    return MemoryIndex(side, torch.arange(rows), cuts=(rows // 3,))
