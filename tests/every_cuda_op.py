"""Calls of every op with a CUDA kernel, in each of its forms. As a program it runs them once: for compute-sanitizer.

compute-sanitizer --tool racecheck python tests/every_cuda_op.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import G2LOperands, LayerNormWeights

Op = Callable[..., tuple[Tensor, ...]]
Call = tuple[Op, list[Tensor]]  # an op as a function of the tensors beside it

# Rows, columns, k, dtype: many short rows, few long ones (which several blocks share), the largest k, odd rows.
SELECTIONS = [
    (600, 1_234, 10, torch.float32),
    (3, 300_001, 100, torch.bfloat16),
    (1, 400_000, 2_048, torch.float32),
    (7, 40_000, 2_048, torch.float16),
    (5, 77, 77, torch.float32),
]
STORED = [torch.bfloat16, torch.float32]


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").to(dtype)


def topk(rows: int, columns: int, k: int, dtype: torch.dtype, seed: int) -> Call:
    return partial(ops.topk, k=k, backend="cuda"), [drawn(rows, columns, seed=seed, dtype=dtype)]


def topk_merge(rows: int, columns: int, k: int, dtype: torch.dtype, seed: int) -> Call:
    values = drawn(rows, k, seed=seed + 1, dtype=dtype).sort(descending=True).values
    ids = torch.arange(k, device="cuda").repeat(rows, 1)
    scores = drawn(rows, columns, seed=seed, dtype=dtype)
    return partial(ops.topk_merge, first=k, backend="cuda"), [values, ids, scores]


def rerank(stored: torch.dtype, seed: int) -> Call:
    """Text by entity, images by a row that entities share; candidates that repeat, and -1."""
    mentions, entities, images, columns = 9, 400, 150, 130
    row = torch.arange(entities, device="cuda") % images
    candidates = drawn(mentions, columns, seed=seed + 2).mul(100).long().abs() % entities
    candidates[:, ::11] = -1
    tensors = [drawn(mentions, 200, seed=seed + 3), drawn(entities, 200, seed=seed + 4, dtype=stored), candidates, row]
    for i, (rows, length, own) in enumerate([(entities, 40, 37), (images, 50, 50)]):
        shapes = [(rows, length, 96), (rows, 96), (mentions, own, 96), (mentions, own, 96)]
        kinds = [stored, stored, torch.float32, torch.float32]
        tensors += [drawn(*s, seed=seed + 5 + 4 * i + j, dtype=kinds[j]) for j, s in enumerate(shapes)]
    norm = LayerNormWeights(drawn(96, seed=1), drawn(96, seed=2))

    def op(mention: Tensor, entity: Tensor, candidates: Tensor, row: Tensor, *both: Tensor) -> tuple[Tensor, ...]:
        parts = [G2LOperands(*both[:4], norm, 0.2), G2LOperands(*both[4:], norm, 0.3, row)]
        arguments = (mention, entity, parts, candidates, 20)
        return ops.rerank_topk(*arguments, components=True, precision="bf16", backend="cuda")

    return op, tensors


def name(op: Op, *parameters: object) -> str:
    return " ".join([op.__name__, *(str(p).removeprefix("torch.") for p in parameters)])


# By name, what makes a call from a seed, on the current device.
CALLS: dict[str, Callable[[int], Call]] = {
    name(op, *selection): partial(op, *selection) for selection in SELECTIONS for op in (topk, topk_merge)
} | {name(rerank, stored): partial(rerank, stored) for stored in STORED}


if __name__ == "__main__":
    for title, make in CALLS.items():
        op, tensors = make(0)
        op(*tensors)
        torch.cuda.synchronize()
        print(title, flush=True)
