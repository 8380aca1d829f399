"""Two-stage selection of a resident index with the CUDA kernels: candidates by ``topk_merge``, then ``rerank_topk``."""

from __future__ import annotations

from functools import partial

import pytest

from m3el_fast import ops
from m3el_fast.scoring.entities import Resident
from test_scorer_device import as_on_a_gpu
from test_scorer_exact import DEAD, MENTIONS, plant
from test_two_stage import check, same


@pytest.mark.parametrize("form", ["m3el", "released", "t2v-only", "text", "image"])
def test_two_stages(form: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant(form, dead=DEAD)
    monkeypatch.setattr(ops, "scan_precision", lambda device: "bf16")
    for name in ("topk_merge", "rerank_topk"):
        monkeypatch.setattr(ops, name, partial(getattr(ops, name), backend="cuda"))
    scorer = as_on_a_gpu(Resident, monkeypatch)(planted.model, planted.index, device=device)
    for k, candidates in ((1, 1), (5, 31)):
        check(planted, form, scorer.topk(planted.mentions, k, candidates), k, candidates)
    same(scorer.topk(planted.mentions, 12, 10**9), scorer.topk(planted.mentions, 12))
    assert scorer.stats.reranked > MENTIONS * (1 + 31)
    assert 1e-5 < scorer.stats.error["union"] < 0.05  # products were in bf16
