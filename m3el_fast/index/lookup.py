"""Tables from 64-bit keys to rows that need not be read whole, and the digests that serve as keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def digests(values: Iterable[bytes | memoryview], words: int) -> Tensor:
    """The first ``words`` 64-bit words of BLAKE2b of each of n values, int64 [n, words]."""
    data = b"".join(hashlib.blake2b(value, digest_size=8 * words).digest() for value in values)
    return torch.from_numpy(np.frombuffer(bytearray(data), "<i8").astype(np.int64)).view(-1, words)


def pack_table(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The keys int64 [n] sorted, and the row of each."""
    sorted_keys, rows = keys.sort(stable=True)
    return sorted_keys, rows


def find(table: tuple[Tensor, Tensor], wanted: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of a place in ``wanted`` int64 [m] and a row with that key; binary search, so that little is read."""
    keys, rows = table
    wanted = wanted.contiguous()
    first, last = torch.searchsorted(keys, wanted), torch.searchsorted(keys, wanted, right=True)
    count = last - first
    place = torch.arange(len(wanted)).repeat_interleave(count)
    offset = torch.arange(len(place)) - (count.cumsum(0) - count).repeat_interleave(count)
    return place, rows[first.repeat_interleave(count) + offset]
