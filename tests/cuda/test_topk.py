"""CUDA top-k against the reference: the same ids, and values of the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import cuda, native, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# rows, columns, k; the emulator has 4 multiprocessors: 8 blocks fill it, 128 are the most; a part has 16,384 columns
SIZES = {
    "one": (1, 1, 1),
    "short": (3, 7, 3),
    "whole-row": (2, 13, 13),
    "first-of-each": (5, 1009, 1),
    "more-rows-than-blocks": (300, 37, 5),
    "rows": (9, 4999, 10),
    "rows-k256": (2, 5003, 256),
    "rows-k257": (2, 5003, 257),
    "rows-k2048": (1, 6007, 2048),
    "all-2048": (1, 2048, 2048),
    "two-parts": (1, 33003, 30),
    "rows-of-two-parts": (3, 32771, 100),
    "parts-in-two-steps": (1, 131083, 7),
    "radix": (1, 33003, 300),
    "radix-rows": (2, 32801, 600),
    "radix-k2048": (1, 32769, 2048),
}


def normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator)


def ties(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Few values, both zeros among them."""
    return torch.randint(-2, 3, (rows, columns), generator=generator) * torch.tensor(0.5).where(
        torch.rand(rows, columns, generator=generator) < 0.5, torch.tensor(-0.5)
    )


def equal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.ones(rows, columns)


def special(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Half of it infinities, extremes and NaN of both signs."""
    inf, least = math.inf, 2.0**-149
    several = torch.tensor([inf, -inf, math.nan, -math.nan, 0.0, -0.0, 3.4e38, -3.4e38, least, -least, 1e-40, -1e-40])
    chosen = several[torch.randint(0, len(several), (rows, columns), generator=generator)]
    scores = torch.randn(rows, columns, generator=generator)
    return scores.where(torch.rand(rows, columns, generator=generator) < 0.5, chosen)


KINDS = [normal, ties, equal, special]


def make(kind: Callable[..., Tensor], rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return kind(rows, columns, torch.Generator().manual_seed(seed)).to(dtype)


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert found[1].dtype == torch.int64
    assert found[0].dtype == expected[0].dtype
    assert torch.equal(found[1].cpu(), expected[1].cpu())
    assert torch.equal(bits(found[0]).cpu(), bits(expected[0]).cpu())


def check(scores: Tensor, k: int, device: str) -> None:
    same(ops.topk(scores.to(device), k, backend="cuda"), reference.topk(scores, k))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_topk(device: str, size: tuple[int, int, int], kind: Callable[..., Tensor], dtype: torch.dtype) -> None:
    rows, columns, k = size
    check(make(kind, rows, columns, dtype), k, device)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("size", ["rows", "rows-k257", "two-parts", "radix"])
def test_order_of_execution_does_not_show(device: str, reorder: Callable[[int], None], size: str, seed: int) -> None:
    reorder(seed)
    rows, columns, k = SIZES[size]
    check(make(ties, rows, columns, torch.bfloat16), k, device)
    check(make(normal, rows, columns, torch.float32, seed), k, device)


ROWS_OF = {
    "ascending": lambda n: torch.arange(float(n)),
    "descending": lambda n: -torch.arange(float(n)),
    "zeros": torch.zeros,
    "signed-zeros": lambda n: torch.zeros(n).where(torch.arange(n) % 3 == 0, torch.tensor(-0.0)),
    "minus-infinity": lambda n: torch.full((n,), -math.inf),
    "plus-infinity": lambda n: torch.full((n,), math.inf),
    "nan": lambda n: torch.full((n,), math.nan),
    "numbers-last": lambda n: torch.full((n,), math.nan).where(torch.arange(n) < n - 3, torch.tensor(-math.inf)),
    "one-far-off": lambda n: torch.randn(n, generator=torch.Generator().manual_seed(1)).index_fill(
        0, torch.tensor([n // 2]), 1e30
    ),
}


@pytest.mark.parametrize("size", ["rows", "rows-k257", "two-parts", "radix"])
@pytest.mark.parametrize("row", ROWS_OF.values(), ids=ROWS_OF.keys())
def test_rows_that_defeat_sampling(device: str, size: str, row: Callable[[int], Tensor]) -> None:
    _, columns, k = SIZES[size]
    check(row(columns)[None], k, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("offset", [1, 2, 5])
@pytest.mark.parametrize("columns", [1, 6, 4099, 32775])
def test_rows_at_any_address(device: str, columns: int, offset: int, dtype: torch.dtype) -> None:
    rows = 2
    scores = make(normal, 1, rows * columns + offset, dtype)[0].to(device)[offset:].view(rows, columns)
    k = min(columns, 300)
    same(ops.topk(scores, k, backend="cuda"), reference.topk(scores.cpu(), k))


def test_no_rows(device: str) -> None:
    values, ids = ops.topk(torch.empty(0, 5, device=device), 3, backend="cuda")
    assert values.shape == ids.shape == (0, 3)
    values, ids = ops.topk_merge(values, ids, torch.empty(0, 4, device=device), 5, backend="cuda")
    assert values.shape == ids.shape == (0, 3)


MERGES = {  # rows, columns of each block, k
    "small": (3, (13, 29, 1, 0, 40), 9),
    "k-above-block": (2, (300, 40, 700), 290),
    "block": (9, (5000, 3001), 20),
    "parts": (1, (40, 33000, 131077), 30),
    "radix": (1, (400, 33001, 40000), 350),
    "radix-k2048": (1, (2500, 32771), 2048),
    "rows-of-radix": (2, (300, 32801), 299),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES.keys())
def test_merged_blocks_equal_the_whole(
    device: str, merge: tuple[int, tuple[int, ...], int], kind: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    rows, widths, k = merge
    scores = make(kind, rows, sum(widths), dtype)
    first, *rest = scores.split(widths, dim=1)
    values, ids = ops.topk(first.contiguous().to(device), k, backend="cuda")
    done = widths[0]
    for block in rest:
        values, ids = ops.topk_merge(values, ids, block.contiguous().to(device), done, backend="cuda")
        done += block.shape[1]
    same((values, ids), reference.topk(scores, k))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_merging_where_all_of_before_and_many_more_share_digits(
    device: str, reorder: Callable[[int], None], seed: int
) -> None:
    """Then the old selection alone fills the buffer of the keys that radix selection collects."""
    reorder(seed)
    k, columns = 2048, 32771
    old = torch.full((1, k), 1.5 + 2.0**-15)
    scores = torch.full((1, columns), -1.0)
    scores[:, :1000] = 1.5 + 2.0**-16
    before = old.to(device), torch.arange(k, device=device)[None]
    found = ops.topk_merge(*before, scores.to(device), k, backend="cuda")
    same(found, reference.topk(torch.cat([old, scores], dim=1), k))


@pytest.mark.parametrize("k", [257, 300, 512])
def test_many_equal_scores_at_the_bound(device: str, k: int) -> None:
    """Radix selection's digits do not tell the last one selected from its 511 neighbours, and the rest must fit too."""
    scores = torch.zeros(1, 33_000)
    scores[:, -k + 1 :] = 1
    check(scores, k, device)


@pytest.mark.parametrize("size", [(3, 50, 8), (2, 5000, 300), (1, 33000, 20), (1, 33000, 300)], ids=str)
@pytest.mark.parametrize("row", ["normal", "minus-infinity", "nan", "few"])
def test_merging_into_an_empty_selection(device: str, size: tuple[int, int, int], row: str) -> None:
    """-1 with -inf stands for what is not there yet: an incoming -inf loses to it, and so does NaN."""
    rows, columns, k = size
    scores = make(normal, rows, columns, torch.float32)
    if row == "few":
        scores[:, k // 2 :] = -math.inf
        scores[:, : k // 4] = math.nan
    elif row != "normal":
        scores.fill_(-math.inf if row == "minus-infinity" else math.nan)
    empty = torch.full((rows, k), -math.inf), torch.full((rows, k), -1)
    first = (1 << 32) + 5
    found = ops.topk_merge(*(t.to(device) for t in empty), scores.to(device), first, backend="cuda")
    same(found, ops.topk_merge(*empty, scores, first, backend="reference"))
    if not native.MISSING:
        same(found, ops.topk_merge(*empty, scores, first, backend="native"))


def test_merging_nan_of_before(device: str) -> None:
    """A selection of fewer numbers than k takes every number, and no NaN in the place of an earlier one."""
    values, ids = torch.tensor([[2.0, math.nan, math.nan]]), torch.tensor([[4, 1, 3]])
    scores = torch.tensor([[math.nan, -math.inf, math.nan]])
    found = ops.topk_merge(values.to(device), ids.to(device), scores.to(device), 9, backend="cuda")
    assert found[1].tolist() == [[4, 10, 1]]


def test_limits(device: str) -> None:
    scores = torch.randn(1, 3000, device=device)
    with pytest.raises(RuntimeError, match="up to 2,048, got 2049"):
        cuda.LIBRARY.topk(scores, 2049)
    with pytest.raises(RuntimeError, match="expected 1 to 3000"):
        cuda.LIBRARY.topk(scores, 0)
    with pytest.raises(RuntimeError, match="takes float32, bfloat16 and float16"):
        cuda.LIBRARY.topk(scores.double(), 3)
    values, ids = cuda.LIBRARY.topk(scores, 3)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cuda.LIBRARY.topk_merge(values, ids[:, :2].contiguous(), scores, 3000)
    with pytest.raises(RuntimeError, match="values: expected"):
        cuda.LIBRARY.topk_merge(values.bfloat16(), ids, scores, 3000)
