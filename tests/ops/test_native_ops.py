"""Native CPU kernels against the reference, at every level that this machine has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import G2LOperands, LayerNormWeights, native, reference
from m3el_fast.ops.reference import DualWeights
from native_levels import ALL_LEVELS, LEVELS, randn

pytestmark = pytest.mark.skipif(bool(native.MISSING), reason="the native extension is not built")


def norm(d: int) -> LayerNormWeights:
    return LayerNormWeights(1 + randn(d, seed=8, scale=0.2), randn(d, seed=9, scale=0.2))


def operands(e: int, le: int, m: int, lm: int, d: int, scale: float = 1.0) -> dict[str, Tensor]:
    """Queries and gates that bf16 holds exactly, so that a bf16 index and the reference read the same numbers."""
    return {
        "query": randn(e, le, d, seed=1, scale=scale).bfloat16().float(),
        "key": randn(m, lm, d, seed=2),
        "value": randn(m, lm, d, seed=3),
        "gate": randn(e, d, seed=4).bfloat16().float(),
    }


def doubled(tensors: dict[str, Tensor], layer: LayerNormWeights) -> tuple[dict[str, Tensor], LayerNormWeights]:
    return {k: t.double() for k, t in tensors.items()}, LayerNormWeights(layer.weight.double(), layer.bias.double())


def close(found: Tensor, exact: Tensor, share: float) -> None:
    """Within ``share`` of the scores' spread: the errors of a score come from sums of d terms of that size."""
    assert found.shape == exact.shape
    assert found.dtype == torch.float32
    if exact.numel():
        spread = max(1.0, float(exact.double().pow(2).mean().sqrt()))
        assert float((found.double() - exact.double()).abs().max()) <= share * spread


# fp32: sums of up to 96 terms and logits up to 30 leave 1e-5. bf16 is compared with the reference of the same rounding:
# what is left is that of V_c and of exp2 (8e-5), and rounding ties that fp32 and fp64 break differently.
FP32, BF16 = 2e-5, 2e-3

SIZES = [
    (1, 1, 1, 1, 1),
    (1, 40, 1, 40, 96),
    (3, 2, 2, 3, 5),
    (17, 7, 5, 11, 13),
    (16, 5, 3, 5, 32),
    (33, 6, 4, 65, 7),
    (19, 50, 18, 50, 96),
    (150, 3, 2, 4, 8),
    (2, 4, 300, 3, 8),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["fp32-index", "bf16-index"])
def test_g2l_scores(level: str, size: tuple[int, ...], precision: str, stored: torch.dtype) -> None:
    tensors, layer = operands(*size), norm(size[-1])
    given = tensors | {"query": tensors["query"].to(stored), "gate": tensors["gate"].to(stored)}
    exact, exact_layer = doubled(tensors, layer)
    expected = reference.g2l_scores(*exact.values(), exact_layer, bf16=precision == "bf16")
    found = ops.g2l_scores(**given, norm=layer, precision=precision, backend="native")
    close(found, expected, FP32 if precision == "fp32" else BF16)


@pytest.mark.parametrize("size", [(17, 7, 5, 11, 13), (35, 40, 3, 40, 96)], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_g2l_masks(level: str, size: tuple[int, ...], precision: str) -> None:
    e, le, m, lm, d = size
    tensors, layer = operands(*size), norm(d)
    masks = {"query_mask": randn(e, le, seed=5) > 0, "key_mask": randn(m, lm, seed=6) > 0}
    for mask in masks.values():
        mask[:, 0] = True
        mask[0, 1:] = False
    exact, exact_layer = doubled(tensors, layer)
    expected = reference.g2l_scores(*exact.values(), exact_layer, *masks.values(), bf16=precision == "bf16")
    found = ops.g2l_scores(**tensors, norm=layer, **masks, precision=precision, backend="native")
    close(found, expected, FP32 if precision == "fp32" else BF16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_g2l_rows_and_pairs_repeat_the_whole_block_bitwise(level: str, precision: str) -> None:
    e, m = 37, 5
    tensors, layer = operands(e, 6, m, 9, 24), norm(24)
    tensors["query"][20], tensors["gate"][20] = tensors["query"][3], tensors["gate"][3]  # identical entities
    options = {"precision": precision, "backend": "native"}
    whole = ops.g2l_scores(**tensors, norm=layer, **options)
    assert torch.equal(whole[:, 20], whole[:, 3])
    rows = torch.randint(e, (71,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(ops.g2l_scores(**tensors, norm=layer, rows=rows, **options), whole[:, rows])
    mention = torch.randint(m, (203,), generator=torch.Generator().manual_seed(2))
    mention[50:120] = 2
    entity = torch.randint(e, (203,), generator=torch.Generator().manual_seed(3))
    pairs = ops.g2l_pairs(**tensors, norm=layer, mention=mention, entity=entity, **options)
    assert torch.equal(pairs, whole[mention, entity])


def test_g2l_pairs_of_more_mentions_than_are_packed_at_a_time(level: str) -> None:
    m = 600
    tensors, layer = operands(3, 2, m, 2, 4), norm(4)
    mention = torch.cat([torch.arange(m), torch.arange(m).flip(0)])
    entity = torch.arange(2 * m) % 3
    found = ops.g2l_pairs(**tensors, norm=layer, mention=mention, entity=entity, backend="native")
    assert torch.equal(found, ops.g2l_scores(**tensors, norm=layer, backend="native")[mention, entity])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_g2l_does_not_depend_on_the_threads(level: str, threads: int) -> None:
    tensors, layer = operands(300, 3, 40, 4, 8), norm(8)
    expected = ops.g2l_scores(**tensors, norm=layer, backend="native")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(ops.g2l_scores(**tensors, norm=layer, backend="native"), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 300.0])
def test_g2l_of_extreme_logits(level: str, scale: float) -> None:
    tensors, layer = operands(5, 4, 3, 6, 16, scale), norm(16)
    exact, exact_layer = doubled(tensors, layer)
    found = ops.g2l_scores(**tensors, norm=layer, backend="native")
    close(found, reference.g2l_scores(*exact.values(), exact_layer), 2e-4)  # logits of 3e3: 1e-4 of rounding each


def test_g2l_of_logits_further_apart_than_fp32_reaches(level: str) -> None:
    tensors, layer = operands(5, 4, 3, 6, 16, 1e37), norm(16)
    assert ops.g2l_scores(**tensors, norm=layer, backend="native").isfinite().all()


def test_g2l_without_variance(level: str) -> None:
    tensors, layer = operands(5, 4, 3, 6, 16), norm(16)
    tensors["value"] = torch.ones_like(tensors["value"])
    found = ops.g2l_scores(**tensors, norm=layer, backend="native")
    torch.testing.assert_close(found, (tensors["gate"] @ layer.bias).expand(3, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 1), (3, 70, 800), (5, 65, 13), (66, 4, 96), (0, 3, 4), (3, 0, 4)])
def test_inner_scores_and_pairs(level: str, m: int, n: int, d: int) -> None:
    left, right = randn(m, d + 3)[:, 1 : d + 1], randn(n, d + 5, seed=1)[:, 2 : d + 2]  # slices of longer rows
    if n > 40:
        right[40] = right[2]
    found = ops.inner_scores(left, right, backend="native")
    close(found, left.double() @ right.double().T, 1e-6)
    if n > 40:
        assert torch.equal(found[:, 40], found[:, 2])
    if m and n:
        mention, entity = torch.arange(2 * n) % m, torch.arange(2 * n) % n
        pairs = ops.inner_pairs(left, right, mention, entity, backend="native")
        assert torch.equal(pairs, found[mention, entity])


@pytest.mark.parametrize(("s", "t", "d"), [(1, 1, 1), (3, 70, 96), (5, 64, 13), (9, 130, 7), (0, 3, 4)])
def test_dual_scores_and_pairs(level: str, s: int, t: int, d: int) -> None:
    weights = DualWeights(randn(d, d, scale=d**-0.5), randn(d), randn(1, d, seed=2), randn(1, seed=3), norm(d), norm(d))
    source, target = randn(s, d, seed=4), (randn(t, d, seed=5), randn(t, d, seed=6))
    packed = ops.dual_source(source, weights), ops.dual_target(*target, weights), ops.dual_constants(weights)
    found = ops.dual_scores(*packed, backend="native")
    exact = DualWeights(*(w.double() for w in weights[:4]), *(doubled({}, n)[1] for n in weights[4:]))
    close(found, reference.dual_scores_paper(source.double(), *(x.double() for x in target), exact), 1e-5)
    if s:
        left, right = torch.arange(3 * t) % s, torch.arange(3 * t) % t
        assert torch.equal(ops.dual_pairs(*packed, left, right, backend="native"), found[left, right])


VALUES = [-math.inf, math.inf, math.nan, 0.0, -0.0, 1.0, -1.0, 1e-40]


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 7, 7), (5, 200, 1), (4, 500, 130), (0, 5, 2)])
@pytest.mark.parametrize("kind", ["random", "ties", "special"])
def test_topk(m: int, n: int, k: int, kind: str) -> None:
    scores = randn(m, n)
    if kind == "ties":
        scores = scores.round()
    if kind == "special":
        scores = torch.tensor(VALUES)[torch.randint(len(VALUES), (m, n), generator=torch.Generator().manual_seed(3))]
    values, ids = ops.topk(scores, k, backend="native")
    expected_values, expected_ids = reference.topk(scores, k)
    assert torch.equal(ids, expected_ids)
    assert torch.equal(values.nan_to_num(7e7), expected_values.nan_to_num(7e7))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_topk_merge_of_blocks_equals_the_whole(backend: str) -> None:
    scores = randn(4, 100).round(decimals=1)
    scores[0, 3:90] = math.nan
    values, ids = ops.topk(scores[:, :13], 9, backend=backend)
    for start in range(13, 100, 29):
        values, ids = ops.topk_merge(values, ids, scores[:, start : start + 29], start, backend=backend)
    expected = reference.topk(scores, 9)
    assert torch.equal(ids, expected[1])
    assert torch.equal(values.nan_to_num(7e7), expected[0].nan_to_num(7e7))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rerank_topk(level: str, precision: str) -> None:
    text, image = operands(29, 7, 4, 5, 24), operands(13, 6, 4, 5, 16)
    row = torch.randint(13, (29,), generator=torch.Generator().manual_seed(1))
    parts = [
        G2LOperands(text["query"], text["gate"], text["key"], text["value"], norm(24), 0.5),
        G2LOperands(image["query"], image["gate"], image["key"], image["value"], norm(16), 0.3, row),
    ]
    coarse = randn(4, 20), randn(29, 20, seed=1)
    candidates = torch.randint(-1, 29, (4, 40), generator=torch.Generator().manual_seed(2))
    candidates[1] = -1
    candidates[2, 3:] = -1
    values, ids = ops.rerank_topk(*coarse, parts, candidates, 6, precision=precision, backend="native")
    exact = [
        G2LOperands(*(t.double() for t in part[:4]), doubled({}, part.norm)[1], part.scale, part.row) for part in parts
    ]
    expected, expected_ids = reference.rerank_topk_paper(*(c.double() for c in coarse), exact, candidates, 6)
    tolerance = 1e-4 if precision == "fp32" else 0.3  # bf16 products: 2^-8 of terms whose sum spreads by 9
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=tolerance)
    if precision == "fp32":
        assert torch.equal(ids, expected_ids)


def test_explicit_backend_is_refused_where_it_does_not_cover_the_arguments() -> None:
    tensors, layer = operands(2, 2, 2, 2, 4), norm(4)
    with pytest.raises(ValueError, match="backend 'native': the kernel has no max pooling"):
        ops.g2l_scores(**tensors, norm=layer, pooling="max", backend="native")
    with pytest.raises(ValueError, match="backend 'native': the kernel takes no other dtype than fp32"):
        ops.topk(randn(2, 2).double(), 1, backend="native")
    with pytest.raises(ValueError, match=r"backend: expected 'auto', .* or 'cuda', got 'gpu'"):
        ops.topk(randn(2, 2), 1, backend="gpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend 'native': the kernel has no gradient"):
        ops.inner_scores(randn(2, 2).requires_grad_(), randn(2, 2), backend="native")


def test_missing_extension_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "MISSING", "no compiler")
    assert ops.scan_precision() == "fp32"
    assert torch.equal(ops.topk(randn(2, 5), 2)[1], reference.topk(randn(2, 5), 2)[1])
    with pytest.raises(ValueError, match="backend 'native': no compiler"):
        ops.topk(randn(2, 5), 2, backend="native")


def test_unknown_and_absent_levels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3EL_CPU_ISA", "sse9")
    with pytest.raises(RuntimeError, match="M3EL_CPU_ISA: expected scalar, avx2, avx512, avx512bf16 or amx, got sse9"):
        ops.g2l_scores(**operands(2, 2, 2, 2, 4), norm=norm(4), backend="native")
    for name in set(ALL_LEVELS) - set(LEVELS):
        monkeypatch.setenv("M3EL_CPU_ISA", name)
        with pytest.raises(RuntimeError, match=f"this machine has no {name}"):
            ops.scan_precision()


def test_rows_out_of_range_are_refused() -> None:
    tensors, layer = operands(3, 2, 2, 2, 4), norm(4)
    with pytest.raises(ValueError, match=r"rows: expected rows in 0..2, got 0..3"):
        ops.g2l_scores(**tensors, norm=layer, rows=torch.tensor([0, 3]))
    with pytest.raises(RuntimeError, match="rows: -1 is no row of 3"):
        weights = layer.weight, layer.bias, layer.eps
        torch.ops.m3el_fast.g2l_scores(*tensors.values(), *weights, None, None, torch.tensor([-1]), False)


def op_samples() -> dict[str, tuple[object, ...]]:
    tensors, layer = operands(5, 3, 4, 2, 8), norm(8)
    g2l = (*tensors.values(), layer.weight, layer.bias, 1e-5, None, None)
    pair = torch.tensor([0, 1, 1]), torch.tensor([4, 0, 2])
    packed = randn(3, 31), randn(5, 31)
    return {
        "g2l_scores": (*g2l, None, False),
        "g2l_pairs": (*g2l, *pair, True),
        "inner_scores": (randn(3, 6), randn(5, 6)),
        "inner_pairs": (randn(3, 6), randn(5, 6), *pair),
        "dual_scores": (*packed, torch.tensor([0.1, 0.2, 1e-5, 1e-5])),
        "dual_pairs": (*packed, torch.tensor([0.1, 0.2, 1e-5, 1e-5]), *pair),
        "topk": (randn(3, 9), 2),
        "topk_merge": (randn(3, 2), torch.tensor([[4, 1], [0, 3], [8, 2]]), randn(3, 4, seed=1), 9),
    }


@pytest.mark.parametrize("name", list(op_samples()))
def test_opcheck(name: str) -> None:
    op = getattr(torch.ops.m3el_fast, name).default
    torch.library.opcheck(op, op_samples()[name])


def test_compiles_without_a_graph_break() -> None:
    layer, coarse = norm(8), (randn(4, 6), randn(5, 6))

    def scores(query: Tensor, key: Tensor, value: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        g2l = ops.g2l_scores(query, key, value, gate, layer) + ops.inner_scores(*coarse)
        return ops.topk(g2l, 3)

    tensors = operands(5, 3, 4, 2, 8).values()
    with torch.no_grad():
        compiled = torch.compile(scores, fullgraph=True, backend="aot_eager")(*tensors)
        for found, expected in zip(compiled, scores(*tensors), strict=True):
            assert torch.equal(found, expected)
