"""RankCounter alone: what counts, what is settled, and when the margin is too small."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from m3el_fast.scoring.margins import largest_error
from m3el_fast.scoring.ranks import MarginTooSmall, RankCounter

KEYS = torch.tensor([10, 11, 12, 13, 14])
WEIGHTS = torch.tensor([1, 3, 0, 1, 2])  # live entities of each unit


class Counted:
    """A counter with golds 0 and 5, keys 10 and 14, a margin of 1, and exact scores."""

    def __init__(self, exact: Tensor, checked: bool = True, gold: tuple[float, float] = (0.0, 5.0)) -> None:
        self.exact, self.checked, self.asked = exact, checked, set[tuple[int, int]]()
        key, identical = torch.tensor([10, 14]), torch.tensor([1, 2])
        self.counter = RankCounter(torch.tensor(gold), key, identical, 1.0, self._settle, self._holds)

    def _settle(self, mention: Tensor, unit: Tensor) -> Tensor:
        self.asked |= set(zip(mention.tolist(), unit.tolist(), strict=True))
        return self.exact[mention, unit]

    def _holds(self, scanned: Tensor, settled: Tensor) -> bool:
        return not self.checked or largest_error(scanned, settled) <= 0.5

    def ranks(self, scanned: Tensor) -> list[float]:
        for start in (0, 2):  # two blocks
            own = slice(start, start + 2 if start == 0 else 5)
            self.counter.add(scanned[:, own], torch.arange(5)[own], KEYS[own], WEIGHTS[own])
        return self.counter.ranks().tolist()


EXACT = torch.tensor([[0.0, 9.0, 9.0, 0.2, -9.0], [9.0, 5.0, 5.1, 4.8, 5.0]])


def test_all_entities_of_a_unit_count_and_only_near_and_live_ones_are_settled() -> None:
    one = Counted(EXACT)
    # above the first gold: units 1 (three entities) and 3; above the second: unit 0, level with it: unit 1 and its twin
    assert one.ranks(EXACT + 0.3) == [1 + 3 + 1, 1 + 1 + (3 + 1) / 2]
    assert one.asked == {(0, 3), (1, 1), (1, 3)}


@pytest.mark.parametrize("off", [-7.0, -0.9, 0.9, 7.0])
def test_an_error_on_what_is_identical_to_the_gold_is_seen(off: float) -> None:
    scanned = EXACT.clone()
    scanned[0, 0] += off
    with pytest.raises(MarginTooSmall):
        Counted(EXACT).ranks(scanned)
    # where errors are not looked at, it is level with the gold all the same
    assert Counted(EXACT, checked=False).ranks(scanned) == [5, 4]


def test_an_error_on_what_is_settled_is_seen() -> None:
    scanned = EXACT.clone()
    scanned[1, 3] += 0.7
    with pytest.raises(MarginTooSmall):
        Counted(EXACT).ranks(scanned)


@pytest.mark.parametrize(("gold", "rank"), [(torch.inf, 1), (-torch.inf, 1 + 3 + 1 + 2)])
def test_golds_without_a_finite_score(gold: float, rank: float) -> None:
    exact = EXACT.clone()
    exact[0, 0] = gold
    assert Counted(exact, gold=(gold, 5.0)).ranks(exact)[0] == rank
