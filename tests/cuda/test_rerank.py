"""The CUDA kernels of rerank_topk against the reference in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import G2LOperands, LayerNormWeights, cuda, reference
from native_levels import randn

# Of the scores' spread. The reference has the same roundings to bf16, and fp32's are left: sums of up to 256 terms and
# exp2 of logits up to 30 leave 1e-5, an operand that fp64 rounds to bf16 the other way (1 in 2^16) 2^-8 of its share.
TOLERANCE = 1e-3

ENTITIES = 23


class Case(NamedTuple):
    """Arguments of rerank_topk, on the device."""

    mention_coarse: Tensor
    entity_coarse: Tensor
    parts: list[G2LOperands]
    candidates: Tensor

    def run(self, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        columns = self.candidates.shape[1]
        return ops.rerank_topk(*self, k or columns, components=True, precision="bf16", backend="cuda")


def part(
    device: str,
    rows: int,
    mentions: int,
    tokens: tuple[int, int],
    d: int,
    *,
    seed: int = 0,
    stored: torch.dtype = torch.bfloat16,
    entities: int | None = None,
    scale: float = 0.5,
) -> G2LOperands:
    """Operands of ``rows`` rows of query; ``entities``: as many of these share them by a row map."""
    le, lm = tokens
    query, gate = randn(rows, le, d, seed=seed + 1), randn(rows, d, seed=seed + 2)
    key, value = randn(mentions, lm, d, seed=seed + 3), randn(mentions, lm, d, seed=seed + 4)
    norm = LayerNormWeights(1 + randn(d, seed=seed + 5, scale=0.2).to(device), randn(d, seed=seed + 6).to(device))
    row = None if entities is None else (torch.arange(entities) * 7 % rows).to(device)
    # values that bf16 holds, in either dtype
    index = [t.bfloat16().to(device, stored) for t in (query, gate)]
    return G2LOperands(*index, key.to(device), value.to(device), norm, scale, row)


def ids(mentions: int, columns: int, seed: int = 9) -> Tensor:
    """Rows of the index with repetitions, one in five absent."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(ENTITIES, (mentions, columns), generator=generator)
    return rows.masked_fill(torch.rand(rows.shape, generator=generator) < 0.2, -1)


def permutations(mentions: int) -> Tensor:
    """All rows of the index for each mention, in an order of its own."""
    return randn(mentions, ENTITIES, seed=10).argsort(dim=1)


def case(device: str, parts: Sequence[G2LOperands], candidates: Tensor, width: int = 16) -> Case:
    coarse = randn(candidates.shape[0], width, seed=11), randn(ENTITIES, width, seed=12)
    return Case(*(t.to(device) for t in coarse), list(parts), candidates.to(device))


def planes(of: Case) -> Tensor:
    """[1 + parts, M, E] in fp64: the coarse product and each scaled G2L of all pairs."""
    found = [of.mention_coarse.double() @ of.entity_coarse.double().T]
    for p in of.parts:
        norm = LayerNormWeights(p.norm.weight.double(), p.norm.bias.double(), p.norm.eps)
        operands = (p.query.double(), p.key.double(), p.value.double(), p.gate.double())
        g2l = p.scale * reference.g2l_scores(*operands, norm, bf16=True)
        found.append(g2l if p.row is None else g2l[:, p.row])
    return torch.stack(found).cpu()


def check(of: Case, k: int | None = None) -> None:
    values, chosen, components = (t.cpu() for t in of.run(k))
    candidates, exact = of.candidates.cpu(), planes(of)
    absent = candidates < 0
    scores = exact.sum(0).gather(1, candidates.clamp_min(0)).masked_fill(absent, -math.inf)
    best = scores.sort(dim=1, descending=True).values[:, : k or scores.shape[1]]
    spread = max(1.0, float(exact.square().mean().sqrt())) if exact.numel() else 1.0
    torch.testing.assert_close(values.double(), best, rtol=0.0, atol=TOLERANCE * spread)
    none = best == -math.inf
    assert torch.equal(chosen == -1, none)
    expected = exact.gather(2, chosen.clamp_min(0).expand(len(exact), -1, -1)).masked_fill(none, -math.inf)
    torch.testing.assert_close(components.double(), expected, rtol=0.0, atol=TOLERANCE * spread)
    total = components[0]
    for plane in components[1:]:
        total = total + plane
    assert torch.equal(values, total)
    for listed, given in zip(chosen.tolist(), candidates.tolist(), strict=True):
        assert all(listed.count(i) <= given.count(i) for i in set(listed) - {-1})


# mention tokens of every kernel, on both sides of its tiles; widths on both sides of the pieces of 32 and of 16 bytes
SIZES = [
    ((1, 1), 1),
    ((2, 7), 5),
    ((9, 16), 8),
    ((3, 17), 24),
    ((40, 40), 96),
    ((50, 50), 96),
    ((5, 64), 100),
    ((33, 65), 32),
    ((17, 81), 33),
    ((8, 128), 64),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=["bf16-index", "fp32-index"])
def test_scores(device: str, size: tuple[tuple[int, int], int], stored: torch.dtype) -> None:
    tokens, d = size
    check(case(device, [part(device, ENTITIES, 2, tokens, d, stored=stored)], ids(2, 11)), k=6)


@pytest.mark.parametrize("size", [((3, 128), 256), ((40, 100), 256), ((70, 50), 256), ((300, 3), 16)], ids=str)
def test_operands_that_fill_shared_memory(device: str, size: tuple[tuple[int, int], int]) -> None:
    """The Gram matrix in global memory, or small stages, or many of them."""
    tokens, d = size
    check(case(device, [part(device, ENTITIES, 1, tokens, d)], ids(1, 5)))


@pytest.mark.parametrize("width", [1, 3, 8, 257, 800])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=["bf16-index", "fp32-index"])
def test_coarse_products_alone(device: str, width: int, stored: torch.dtype) -> None:
    of = case(device, [], ids(3, 37), width)
    check(of._replace(entity_coarse=of.entity_coarse.to(stored)), k=9)


def test_two_modalities_and_shared_rows(device: str) -> None:
    text = part(device, ENTITIES, 3, (6, 5), 16)
    image = part(device, 4, 3, (7, 9), 8, seed=50, entities=ENTITIES, scale=-0.25)
    check(case(device, [text, image], ids(3, 19)), k=7)
    check(case(device, [image], ids(3, 19)))


@pytest.mark.parametrize("mentions,columns", [(1, 1), (1, 200), (3, 129), (33, 150)])
def test_divisions_of_the_work(device: str, mentions: int, columns: int) -> None:
    """One warp; a block of each multiprocessor; blocks of a mention; several batches of a warp."""
    check(case(device, [part(device, ENTITIES, mentions, (3, 5), 8)], ids(mentions, columns)))


@pytest.mark.parametrize("k", [1, 5, 2048])
def test_most_candidates(device: str, k: int) -> None:
    check(case(device, [], ids(2, 2048)), k)


def test_no_candidates_at_all(device: str) -> None:
    candidates = ids(3, 12)
    candidates[1] = -1
    check(case(device, [part(device, ENTITIES, 3, (3, 5), 8)], candidates))


def test_nan_features_of_an_entity_sort_behind_numbers_and_touch_no_other(device: str) -> None:
    # stages of 24, 24 and 19 rows in two places: behind the last one lie older rows
    of = case(device, [part(device, ENTITIES, 9, (67, 9), 16)], permutations(9))
    clean_values, clean_ids, _ = (t.cpu() for t in of.run())
    for field in ("query", "gate"):
        spoilt = getattr(of.parts[0], field).clone()
        spoilt[5] = math.nan
        values, chosen, _ = (t.cpu() for t in of._replace(parts=[of.parts[0]._replace(**{field: spoilt})]).run())
        assert bool(values[:, -1].isnan().all())
        assert bool((chosen[:, -1] == 5).all())
        others = clean_ids != 5
        assert torch.equal(chosen[:, :-1].flatten(), clean_ids[others])
        assert torch.equal(values[:, :-1].flatten(), clean_values[others])


def test_absent_candidates_come_behind_nan(device: str) -> None:
    of = case(device, [], torch.tensor([[-1, 5, 7, 5, 3]]))
    of.entity_coarse[5] = math.nan
    values, chosen, _ = (t.cpu() for t in of.run())
    assert sorted(chosen[0, :2].tolist()) == [3, 7]
    assert chosen[0, 2:].tolist() == [5, 5, -1]
    assert bool(values[0, 2:4].isnan().all())
    assert float(values[0, 4]) == -math.inf


@pytest.mark.parametrize("size", [30.0, 1e4, 1e18])
def test_extreme_logits(device: str, size: float) -> None:
    of = case(device, [part(device, ENTITIES, 2, (7, 20), 40)], ids(2, 13))
    of = of._replace(parts=[of.parts[0]._replace(query=of.parts[0].query * size)])
    values, chosen, _ = (t.cpu() for t in of.run())
    assert bool(values[chosen >= 0].isfinite().all())
    if size < 100:  # beyond, a logit's own error in fp32 moves the softmax
        check(of)


@pytest.mark.parametrize("mentions", [1, 9])
def test_equal_scores_come_in_the_order_of_columns(device: str, mentions: int) -> None:
    one = part(device, ENTITIES, mentions, (12, 21), 24)
    same = one._replace(query=one.query[:1].repeat(ENTITIES, 1, 1), gate=one.gate[:1].repeat(ENTITIES, 1))
    candidates = permutations(mentions)
    of = case(device, [same], candidates)
    of = of._replace(entity_coarse=of.entity_coarse[:1].repeat(ENTITIES, 1))
    values, chosen, _ = (t.cpu() for t in of.run())
    assert torch.equal(chosen, candidates)
    assert bool((values == values[:, :1]).all())


def test_infinite_scores(device: str) -> None:
    entity = torch.tensor([[1.0], [-math.inf], [math.inf], [math.nan]])
    of = Case(torch.ones(1, 1).to(device), entity.to(device), [], torch.tensor([[-1, 3, 1, 0, 2]]).to(device))
    assert of.run()[1].tolist() == [[2, 0, 1, 3, -1]]


def test_negative_zero_ties_with_zero(device: str) -> None:
    """Products of 256 features that all underflow have a zero's sign."""
    entity = torch.full((2, 256), 1e-30)
    entity[0] *= -1
    of = Case(torch.full((1, 256), 1e-30).to(device), entity.to(device), [], torch.tensor([[0, 1]]).to(device))
    values, chosen, _ = of.run()
    assert values.signbit().tolist() == [[True, False]]
    assert chosen.tolist() == [[0, 1]]


def by_entity(found: Sequence[Tensor], mention: int) -> dict[int, list[float]]:
    _, chosen, components = (t.cpu() for t in found)
    return dict(zip(chosen[mention].tolist(), components[:, mention].T.tolist(), strict=True))


def test_scores_depend_on_no_division_of_the_work(device: str, reorder: Callable[[int], None]) -> None:
    mentions = 5
    parts = [part(device, ENTITIES, mentions, (19, 43), 40), part(device, ENTITIES, mentions, (3, 9), 24, seed=50)]
    candidates = permutations(mentions)
    of = case(device, parts, candidates)
    given = arguments(of)  # below ops.rerank_topk: the bits of a GPU's matrix products depend on the number of mentions
    together = cuda.LIBRARY.rerank_topk(*of[:2], of.candidates, ENTITIES, *given)
    for m in range(mentions):
        rows = of.candidates[m : m + 1, ::3].flip(1)
        own = [[t[m : m + 1] for t in column] if 3 <= i <= 5 else column for i, column in enumerate(given)]
        alone = cuda.LIBRARY.rerank_topk(of.mention_coarse[m : m + 1], of.entity_coarse, rows, rows.shape[1], *own)
        expected, found = by_entity(together, m), by_entity(alone, 0)
        assert found == {i: expected[i] for i in found}
    for seed in (1, 2):
        reorder(seed)
        again = cuda.LIBRARY.rerank_topk(*of[:2], of.candidates, ENTITIES, *given)
        assert all(torch.equal(a, b) for a, b in zip(again, together, strict=True))


def test_rows_that_start_anywhere(device: str) -> None:
    def moved(t: Tensor) -> Tensor:
        """The same values 4 bytes behind an aligned address."""
        skip = 4 // t.element_size()
        return torch.cat([t.new_zeros(skip), t.flatten()])[skip:].view(t.shape)

    aligned = case(device, [part(device, ENTITIES, 2, (11, 9), 16)], ids(2, 13))
    p = aligned.parts[0]
    of = Case(
        moved(aligned.mention_coarse),
        moved(aligned.entity_coarse),
        [p._replace(query=moved(p.query), gate=moved(p.gate))],
        aligned.candidates,
    )
    assert of.parts[0].query.data_ptr() % 16
    for a, b in zip(of.run(), aligned.run(), strict=True):
        assert torch.equal(a, b)


# ----------------------------------------------------------------------------------------------------------------------
# The op itself, below the checks of m3el_fast.ops


def arguments(of: Case) -> list[list[Tensor] | list[float]]:
    columns: list[list[Tensor]] = [[] for _ in range(8)]
    for p in of.parts:
        centred = p.value - p.value.mean(dim=-1, keepdim=True)
        gram = centred @ centred.transpose(1, 2)
        row = of.candidates.new_empty(0) if p.row is None else p.row
        operands = (p.query, p.gate, row, p.key.bfloat16(), centred, gram, *p.norm[:2])
        for column, t in zip(columns, operands, strict=True):
            column.append(t)
    return [*columns, [p.norm.eps for p in of.parts], [p.scale for p in of.parts]]


def test_no_mentions(device: str) -> None:
    of = case(device, [part(device, ENTITIES, 0, (3, 5), 8)], ids(0, 4))
    found = cuda.LIBRARY.rerank_topk(*of[:2], of.candidates, 2, *arguments(of))
    assert [tuple(t.shape) for t in found] == [(0, 2), (0, 2), (2, 0, 2)]


def test_no_entities(device: str) -> None:
    of = case(device, [part(device, 0, 2, (3, 5), 8)], torch.tensor([[-1, 0, 3]] * 2))
    of = of._replace(entity_coarse=of.entity_coarse[:0])
    shared = part(device, 4, 2, (3, 5), 8, entities=0)
    for given in (of, of._replace(parts=[shared])):
        values, chosen, _ = cuda.LIBRARY.rerank_topk(*of[:2], of.candidates, 3, *arguments(given))
        assert bool((values == -math.inf).all())
        assert bool((chosen == -1).all())


def test_ids_outside_the_index_count_as_absent(device: str) -> None:
    of = case(device, [part(device, ENTITIES, 1, (3, 5), 8)], torch.tensor([[ENTITIES, 4, -7, 1 << 40, -(1 << 40), 2]]))
    _, chosen, _ = cuda.LIBRARY.rerank_topk(*of[:2], of.candidates, 6, *arguments(of))
    assert sorted(chosen[0, :2].tolist()) == [2, 4]
    assert chosen[0, 2:].tolist() == [-1] * 4


def test_a_row_outside_the_queries_scores_nan(device: str) -> None:
    of = case(device, [part(device, 4, 1, (3, 5), 8, entities=ENTITIES)], torch.tensor([[1, 2, 3]]))
    row = of.parts[0].row
    assert row is not None
    row[1], row[2] = 4, -1
    values, chosen, _ = cuda.LIBRARY.rerank_topk(*of[:2], of.candidates, 3, *arguments(of))
    assert chosen.tolist() == [[3, 1, 2]]
    assert values.isnan().tolist() == [[False, True, True]]


def test_a_candidate_out_of_range_is_left_to_the_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asserted: list[tuple[bool, str]] = []
    monkeypatch.setattr(torch, "_assert_async", lambda right, message: asserted.append((bool(right), message)))
    for candidates, right in ((ids(2, 4), True), (torch.tensor([[0, ENTITIES]]), False), (torch.tensor([[-2]]), False)):
        of = case(device, [part(device, ENTITIES, len(candidates), (3, 5), 8)], candidates)
        of.run()
        assert asserted.pop() == (right, f"candidates: expected rows in -1..{ENTITIES - 1}")
        if not right:  # kernels that are waited for anyway leave the device in order
            with pytest.raises(ValueError, match="candidates: expected rows in -1"):
                ops.rerank_topk(*of, 1, backend="reference")
    assert not asserted


def test_what_the_op_refuses(device: str) -> None:
    of = case(device, [part(device, ENTITIES, 1, (3, 5), 8)], ids(1, 4))

    def refused(match: str, at: int | None = None, tensor: Tensor | None = None, **changes: object) -> None:
        given = arguments(of)
        if at is not None:
            given[at] = [] if tensor is None else [tensor]
        head = {"mention": of.mention_coarse, "entity": of.entity_coarse, "ids": of.candidates, "k": 2} | changes
        with pytest.raises(RuntimeError, match=match):
            cuda.LIBRARY.rerank_topk(*head.values(), *given)

    zeros = torch.zeros
    refused("k: expected 1 to 4, got 5", k=5)
    refused("candidates: .* up to 2048", ids=zeros(1, 2049, dtype=torch.int64, device=device))
    refused("candidates", ids=zeros(1, 4, device=device))
    refused("mention_coarse: expected size 1", mention=zeros(2, 16, device=device))
    refused("entity_coarse", entity=zeros(ENTITIES, 16, device=device, dtype=torch.float16))
    refused("1 to 256 features", 0, zeros(ENTITIES, 3, 257, device=device))
    refused("1 to 128 tokens", 3, zeros(1, 129, 8, device=device, dtype=torch.bfloat16))
    refused("tokens of an entity", 0, zeros(ENTITIES, 0, 8, device=device))
    refused("gate", 1, zeros(ENTITIES, 7, device=device))
    refused("row", 2, zeros(ENTITIES - 1, dtype=torch.int64, device=device))
    refused("gate", 0, zeros(ENTITIES + 1, 3, 8, device=device))
    refused("key", 3, zeros(1, 5, 8, device=device))
    refused("centred", 4, zeros(1, 5, 7, device=device))
    refused("gram", 5, zeros(1, 5, 4, device=device))
    refused("norm_weight", 6, zeros(7, device=device))
    refused("norm_bias", 7, zeros(9, device=device))
    refused("as many", 7)


def test_what_the_kernel_does_not_cover_is_said_before_it_starts(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(tokens: tuple[int, int] = (3, 5), d: int = 8, columns: int = 4) -> Case:
        return case(device, [part(device, ENTITIES, 1, tokens, d)], ids(1, columns))

    def refused(match: str, of: Case, precision: ops.Precision = "bf16") -> None:
        with pytest.raises(ValueError, match=f"backend 'cuda': .*{match}"):
            ops.rerank_topk(*of, 2, precision=precision, backend="cuda")

    refused("multiplies in bf16", of(), "fp32")
    refused("up to 2,048 candidates of a mention, got 2,049", of(columns=2049))
    refused("up to 128 mention tokens and 256 features here, got 129 and 8", of((3, 129)))
    refused("got 5 and 257", of(d=257))
    refused("no empty tensors", of((0, 5)))
    plain = of()
    refused("coarse vectors of mentions in fp32", plain._replace(mention_coarse=plain.mention_coarse.double()))
    refused("entities in fp32 and bf16, got torch.float16", plain._replace(entity_coarse=plain.entity_coarse.half()))
    refused("no gradient", plain._replace(mention_coarse=plain.mention_coarse.requires_grad_()))
    monkeypatch.setattr(cuda, "little_shared_memory", lambda device: True)
    refused("128 mention tokens and 160 features here, got 5 and 161", of(d=161))
    check(of(d=160))
