"""Which entities of an index are identical, by component, so that they tie whatever rounding did to their scores."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from m3el_fast.index import EntityIndex
from m3el_fast.matching import Matcher


class Identity:
    """Entities are identical in a component if all that it reads of them is equal: text, image, or both.

    A *leader* is the lowest row, live or not, of those that are identical.

    Args:
        device: of the tensors given.
    """

    def __init__(self, matcher: Matcher, index: EntityIndex, device: torch.device | str = "cpu") -> None:
        self._index, self._device = index, device
        self._reads_text = matcher.text is not None or matcher.cross is not None
        self._reads_image = matcher.image is not None or matcher.cross is not None

    @cached_property
    def text(self) -> Tensor:
        """[rows] int64, the leader of each row by text alone."""
        return self._leaders(self._index.text_key)

    @cached_property
    def image(self) -> Tensor:
        """[rows] int64, the leader of each row by image alone."""
        return self._leaders(self._index.image_index)

    @cached_property
    def both(self) -> Tensor:
        """[rows] int64, the leader of each row by text and image."""
        return self._leaders(self._index.union_key)

    @property
    def union(self) -> Tensor:
        """[rows] int64, the leader of each row by what the model's union score reads."""
        if self._reads_text and self._reads_image:
            return self.both
        return self.text if self._reads_text else self.image

    def of(self, component: str) -> Tensor:
        """[rows] int64, the leader of each row in a component of the scores."""
        own = {"text": "text", "image": "image", "union": "union"}
        leaders: Tensor = getattr(self, own.get(component, "both"))
        return leaders

    @cached_property
    def occurrence(self) -> Tensor:
        """[rows] int64: how many earlier live rows are identical to each row in the union score."""
        leader, live = self.union.cpu(), self._index.live.long()
        order = leader.argsort(stable=True)
        earlier = live[order].cumsum(0) - live[order]
        first = _starts(leader[order])
        before = earlier[first][first.long().cumsum(0) - 1]  # live rows ahead of each row's group
        # a copy from the CPU is there when it returns, for a thread on another stream too
        return torch.empty_like(order).index_put((order,), earlier - before).to(self._device)

    def number(self, row: Tensor) -> Tensor:
        """How many live rows are identical in the union score to each of the rows ``row``, int64 of its shape."""
        return self._groups[2][row]

    def copies(self, row: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """The first ``most`` live rows that are identical in the union score to each of the live rows ``row`` [P].

        Returns:
            For all of them [Q], the place in ``row`` that it belongs to, and the row itself.
        """
        together, start, number = self._groups
        count = number[row].clamp(max=most)
        place = torch.arange(len(row), device=row.device).repeat_interleave(count)
        nth = torch.arange(len(place), device=row.device) - (count.cumsum(0) - count)[place]
        return place, together[start[row][place] + nth]

    @cached_property
    def _groups(self) -> tuple[Tensor, Tensor, Tensor]:
        """The live rows, identical ones together; for each row [rows] where those identical to it start, and how many
        there are."""
        leader = self.union.cpu()
        together = leader.argsort(stable=True)
        together = together[self._index.live[together]]
        number = leader[together].bincount(minlength=len(leader))
        start = number.cumsum(0) - number
        return together.to(self._device), start[leader].to(self._device), number[leader].to(self._device)

    def _leaders(self, keys: Tensor) -> Tensor:
        distinct, group = keys.unique(return_inverse=True)
        first = torch.full((len(distinct),), len(keys)).scatter_reduce(0, group, torch.arange(len(keys)), "amin")
        return first[group].to(self._device)


def _starts(groups: Tensor) -> Tensor:
    """[n] bool: where a run of equal values begins."""
    starts = torch.ones_like(groups, dtype=torch.bool)
    starts[1:] = groups[1:] != groups[:-1]
    return starts
