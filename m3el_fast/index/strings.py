"""Strings of any length and content as two tensors, decoded one by one when asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
import torch
from torch import Tensor


def pack(strings: Iterable[str]) -> tuple[Tensor, Tensor]:
    """UTF-8 bytes uint8 [b] of n strings, one after another, and where each begins and ends, int64 [n + 1]."""
    coded = [encode(string) for string in strings]
    ends = np.cumsum([0, *map(len, coded)], dtype=np.int64)
    return torch.frombuffer(bytearray(b"".join(coded) or b"\0"), dtype=torch.uint8)[: ends[-1]], torch.from_numpy(ends)


def encode(string: str) -> bytes:
    """UTF-8; half a character (a lone surrogate) keeps its code."""
    return string.encode("utf-8", "surrogatepass")


class Strings(Sequence[str]):
    """What :func:`pack` made of several lists, one after another; none of it is copied.

    Args:
        parts: for each list bytes uint8 [b] and offsets int64 [n + 1].
    """

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._parts = [(data.numpy(), offsets.numpy()) for data, offsets in parts]
        self._starts = [0]
        for _, offsets in parts:
            self._starts.append(self._starts[-1] + len(offsets) - 1)

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[str]:
        for data, offsets in self._parts:
            view = data.data
            for first, last in pairwise(offsets.tolist()):
                yield view[first:last].tobytes().decode("utf-8", "surrogatepass")

    def gather(self, rows: Tensor) -> list[str]:
        """Those of ``rows`` [n] int64, many times faster than one by one."""
        wanted = rows.numpy()
        found = [""] * len(wanted)
        for start, (data, offsets) in zip(self._starts, self._parts, strict=False):
            own = ((wanted >= start) & (wanted < start + len(offsets) - 1)).nonzero()[0]
            at, view = wanted[own] - start, data.data
            places = zip(own.tolist(), offsets[at].tolist(), offsets[at + 1].tolist(), strict=True)
            for place, first, last in places:
                found[place] = view[first:last].tobytes().decode("utf-8", "surrogatepass")
        return found

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"expected a row from 0 to {len(self) - 1}, got {row}")
        row %= len(self)
        part = bisect_right(self._starts, row) - 1
        data, offsets = self._parts[part]
        first, last = offsets[row - self._starts[part] :][:2]
        return data[first:last].tobytes().decode("utf-8", "surrogatepass")
