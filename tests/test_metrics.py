from __future__ import annotations

import pytest
import torch

from m3el_fast.metrics import Metrics, table


def test_metrics_by_hand() -> None:
    m = Metrics.of(torch.tensor([1.0, 1.5, 3.0, 4.0, 21.0]))
    assert m.hits == {1: 0.2, 3: 0.6, 5: 0.8, 10: 0.8, 20: 0.8}
    assert m.mrr == pytest.approx((1 + 1 / 1.5 + 1 / 3 + 1 / 4 + 1 / 21) / 5)
    assert m.mr == pytest.approx(6.1)
    assert m.count == 5


def test_no_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one mention"):
        Metrics.of(torch.tensor([]))


def test_table() -> None:
    lines = table({"full model": Metrics.of(torch.tensor([1.0, 2.0])), "x": Metrics.of(torch.tensor([1.0]))}).split(
        "\n"
    )
    assert lines[0].split() == ["Hits@1", "Hits@3", "Hits@5", "Hits@10", "Hits@20", "MRR", "MR"]
    assert lines[1].split() == ["full", "model", "0.5000", "1.0000", "1.0000", "1.0000", "1.0000", "0.7500", "1.5"]
    assert len({len(line) for line in lines}) == 1
