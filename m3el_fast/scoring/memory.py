"""How much is scored at a time, and what of an index stays on a GPU: by the memory that there is."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

_RESIDENT = 0.6  # of a GPU's free memory, what an index may take for good
_SCORES = 0.25  # of what is free then, what the scores of a block may take
_PAIR = 128  # bytes: some thirty fp32 matrices of scores while a block is scored and counted
_FEWEST, _MOST = 1 << 18, 1 << 25  # pairs of a block on a GPU: launches disappear behind the kernels far below the most


class Sizes(NamedTuple):
    """Of one block.

    Attributes:
        mentions: at most; pairs: of a mention and an entity, at most; entities: at most, however few the mentions are.
    """

    mentions: int
    pairs: int
    entities: int

    def mentions_of(self, count: int) -> int:
        """Mentions of a block where there are ``count``: no block is much smaller than the others."""
        blocks = max(1, math.ceil(count / self.mentions))
        return max(1, math.ceil(count / blocks))

    def entities_with(self, mentions: int) -> int:
        """Entities of a block with so many mentions."""
        return min(self.entities, max(1, self.pairs // max(1, mentions)))


# entity rows that a kernel repacked are used 64 times; a component's scores are 0.5 MB, which a core's cache holds
_CPU = Sizes(mentions=64, pairs=64 * 2048, entities=16384)


def sizes_on(device: torch.device) -> Sizes:
    """Of the blocks that ``device`` scores, what is resident being there already."""
    return gpu_sizes(free_bytes(device)) if device.type == "cuda" else _CPU


def gpu_sizes(free: int) -> Sizes:
    """Of blocks on a GPU with ``free`` bytes."""
    pairs = min(_MOST, max(_FEWEST, int(_SCORES * free) // _PAIR))
    return Sizes(mentions=1024, pairs=pairs, entities=1 << 16)


def fits(needed: int, free: int) -> bool:
    """Whether an index of ``needed`` bytes stays on a GPU with ``free`` bytes."""
    return needed <= _RESIDENT * free


def free_bytes(device: torch.device) -> int:
    """Memory of a CUDA device that nobody has, or that PyTorch's allocator keeps for nothing."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached
