"""Each op as the paper writes it against its exact reformulation, at odd sizes, in fp64 within 1e-10."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from m3el_fast import ops
from m3el_fast.ops import CrossModalWeights, DualWeights, G2LOperands, LayerNormWeights, reference

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * len(shape) + sum(shape))
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


def norm(d: int, seed: int = 7) -> LayerNormWeights:
    return LayerNormWeights(1 + 0.3 * randn(d, seed=seed), 0.3 * randn(d, seed=seed + 1))


def same_with_gradients(left: Tensor, right: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(left, right, **EXACT)
    cotangent = torch.randn(left.shape, generator=torch.Generator().manual_seed(3), dtype=left.dtype)
    for a, b in zip(*(torch.autograd.grad(x, inputs, cotangent) for x in (left, right)), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def icl_by_hand(e: Tensor, m: Tensor, tau: float, beta: float, gamma: float, variant: str, dup: Tensor | None) -> float:
    """Spec section 2, term by term in plain Python."""
    b = len(e)
    e, m = torch.nn.functional.normalize(e, dim=1), torch.nn.functional.normalize(m, dim=1)

    def anchor(x: Tensor, y: Tensor, i: int) -> float:
        others = [j for j in range(b) if j != i and not (dup is not None and dup[i, j])]
        own = [float(similarity) / tau for similarity in (x[i] @ x.T).detach()]
        other = [float(similarity) / tau for similarity in (x[i] @ y.T).detach()]
        if variant == "paper":
            positive = math.exp(other[i])
            same = sum(math.exp(own[j]) for j in others)
            return -math.log(positive / (positive + beta * same + gamma * sum(math.exp(other[j]) for j in others)))
        denominator = sum(math.exp(gamma * other[j]) for j in [i, *others])
        denominator += sum(math.exp(beta * own[j]) for j in others) + 1
        return -(gamma * other[i] - math.log(denominator))

    total = sum(anchor(e, m, i) + anchor(m, e, i) for i in range(b))
    return total / b / 2


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("weights", [(0.03, 0.8, 1.0), (0.5, 0.0, 0.7), (1.0, 1.0, 0.0)])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "duplicates-masked"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_icl_is_the_formula(variant: str, weights: tuple[float, float, float], masked: bool, batch: int) -> None:
    e, m = randn(batch, 5, seed=1), randn(batch, 5, seed=2)
    duplicates = torch.zeros(batch, batch, dtype=torch.bool)
    if masked and batch > 1:
        duplicates[0, -1] = duplicates[-1, 0] = True
    tau, beta, gamma = weights
    value = ops.icl_loss(
        e, m, tau=tau, beta=beta, gamma=gamma, variant=variant, duplicates=duplicates if masked else None
    )
    expected = icl_by_hand(e, m, tau, beta, gamma, variant, duplicates if masked else None)
    assert float(value.detach()) == pytest.approx(expected, abs=1e-10)
    assert all(g.isfinite().all() for g in torch.autograd.grad(value, [e, m]))


def test_icl_survives_extreme_temperatures() -> None:
    e = randn(5, 3)
    value = ops.icl_loss(e.float(), e.float(), tau=1e-4)
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-3)


LOSSES = {
    "icl-paper": lambda e, m, **options: ops.icl_loss(e, m, tau=0.2, beta=0.6, gamma=1.2, **options),
    "icl-released": lambda e, m, **options: ops.icl_loss(e, m, tau=0.2, variant="released", **options),
    "infonce": ops.infonce_loss,
    "mclet": ops.mclet_loss,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "duplicates-masked"])
def test_losses_of_slices_of_anchors_add_up(name: str, masked: bool) -> None:
    inputs = [randn(7, 5, seed=1), randn(7, 5, seed=2)]
    duplicates = torch.tensor([3, 9, 3, 1, 9, 3, 2]) if masked else None
    whole = LOSSES[name](*inputs, duplicates=duplicates)
    cuts = [range(0, 1), range(1, 5), range(5, 7)]
    parts = [len(rows) * LOSSES[name](*inputs, duplicates=duplicates, anchors=rows) for rows in cuts]
    same_with_gradients(torch.stack(parts).sum() / 7, whole, inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_duplicates_by_entity_are_those_by_pair(name: str) -> None:
    inputs, gold = [randn(6, 5, seed=1), randn(6, 5, seed=2)], torch.tensor([4, 7, 4, 1, 7, 4])
    for anchors in (None, range(2, 5)):
        by_entity, by_pair, without = (
            LOSSES[name](*inputs, duplicates=d, anchors=anchors) for d in (gold, gold[:, None] == gold, None)
        )
        same_with_gradients(by_entity, by_pair, inputs)
        assert by_entity < without


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_losses_of_half_precision_features_are_fp32(name: str, dtype: torch.dtype) -> None:
    inputs = [randn(9, 5, seed=seed).detach().to(dtype).requires_grad_() for seed in (1, 2)]
    value = LOSSES[name](*inputs)
    assert value.dtype == torch.float32
    exact = LOSSES[name](*(x.detach().double() for x in inputs))
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
    assert {g.dtype for g in torch.autograd.grad(value, inputs)} == {dtype}


@pytest.mark.parametrize("sizes", [*itertools.product([1, 3], [1, 5], [1, 7], [1, 4]), (13, 11, 40, 50)])
@pytest.mark.parametrize("masked", [False, True], ids=["no-mask", "masks"])
def test_g2l_forms_agree(sizes: tuple[int, int, int, int], masked: bool) -> None:
    e, m, le, lm = sizes
    d = 12
    query, gate = randn(e, le, d, scale=2), randn(e, d)
    key, value = randn(m, lm, d, seed=5, scale=2), randn(m, lm, d, seed=6)
    masks: dict[str, Tensor] = {}
    if masked:
        masks = {"query_mask": torch.rand(e, le) < 0.6, "key_mask": torch.rand(m, lm) < 0.6}
        for mask in masks.values():
            mask[:, 0] = True
    layer = norm(d)
    inputs = [query, key, value, gate]
    left = ops.g2l_scores(query, key, value, gate, layer, **masks)
    right = reference.g2l_scores_paper(query, key, value, gate, layer, "mean", **masks)
    assert left.shape == (m, e)
    same_with_gradients(left, right, inputs)
    with torch.no_grad():
        torch.testing.assert_close(ops.g2l_scores(query, key, value, gate, layer, **masks), right, **EXACT)


@pytest.mark.parametrize("pooling", ["mean", "max", "soft"])
def test_g2l_blocks_equal_the_whole(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gate, key, value = randn(17, 5, 8), randn(17, 8), randn(70, 6, 8, seed=1), randn(70, 6, 8, seed=2)
    whole = ops.g2l_scores(query, key, value, gate, norm(8), pooling=pooling)
    monkeypatch.setattr("m3el_fast.ops.g2l._BLOCK_WEIGHTS", 64 * 40 * 3)
    with torch.no_grad():
        torch.testing.assert_close(ops.g2l_scores(query, key, value, gate, norm(8), pooling=pooling), whole, **EXACT)


def test_g2l_masked_tokens_do_not_matter() -> None:
    query, gate, key, value = randn(3, 5, 8), randn(3, 8), randn(4, 6, 8, seed=1), randn(4, 6, 8, seed=2)
    query_mask, key_mask = torch.ones(3, 5, dtype=torch.bool), torch.ones(4, 6, dtype=torch.bool)
    query_mask[:, 3:], key_mask[:, 4:] = False, False
    for pooling in ("mean", "max", "soft"):
        kept = ops.g2l_scores(query[:, :3], key[:, :4], value[:, :4], gate, norm(8), pooling=pooling)
        masked = ops.g2l_scores(
            query, key, value, gate, norm(8), pooling=pooling, query_mask=query_mask, key_mask=key_mask
        )
        torch.testing.assert_close(masked, kept, **EXACT)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=["no-entities", "no-mentions"])
def test_g2l_of_nothing(shape: tuple[int, int]) -> None:
    e, m = shape
    scores = ops.g2l_scores(randn(e, 4, 8), randn(m, 5, 8), randn(m, 5, 8), randn(e, 8), norm(8))
    assert scores.shape == (m, e)


def cross_weights(d: int, heads: int, fusion: bool) -> CrossModalWeights:
    extra = (randn(d, d, seed=21, scale=d**-0.5), randn(d, seed=22)) if fusion else (None, None)
    return CrossModalWeights(
        randn(d, d, seed=11, scale=d**-0.5), randn(d, seed=12), randn(1, d, seed=13), randn(1, seed=14), norm(d),
        1 + 0.3 * randn(heads, seed=15), 0.7, *extra,
    )  # fmt: skip


@pytest.mark.parametrize("heads", range(1, 9))
@pytest.mark.parametrize("fusion", [False, True], ids=["bidirectional", "t2v-only"])
@pytest.mark.parametrize(("n", "rows"), [(1, 1), (3, 2), (5, 49)])
def test_cross_modal_forms_agree(heads: int, fusion: bool, n: int, rows: int) -> None:
    glob, local, weights = randn(n, 12), randn(n, rows, 12), cross_weights(12, heads, fusion)
    left = ops.cross_modal_context(glob, local, weights)
    right = reference.cross_modal_context_paper(glob, local, weights)
    same_with_gradients(left, right, [glob, local, weights.u_weight, weights.gate_weight])


@pytest.mark.parametrize(("s", "t", "d"), [(1, 1, 4), (3, 7, 12), (11, 5, 96)])
def test_dual_forms_agree(s: int, t: int, d: int) -> None:
    weights = DualWeights(
        randn(d, d, scale=d**-0.5), randn(d), randn(1, d, seed=2), randn(1, seed=3), norm(d), norm(d, 30)
    )
    source, key, value = randn(s, d, seed=4), randn(t, d, seed=5), randn(t, d, seed=6)
    left = ops.dual_scores(
        ops.dual_source(source, weights), ops.dual_target(key, value, weights), ops.dual_constants(weights)
    )
    same_with_gradients(left, reference.dual_scores_paper(source, key, value, weights), [source, key, value])


def test_topk_order_ties_and_nan() -> None:
    nan, inf = math.nan, math.inf
    scores = torch.tensor([[1.0, 3.0, 3.0, nan, -inf, 2.0], [nan, nan, 0.0, -inf, inf, 0.0]])
    values, indices = ops.topk(scores, 6)
    assert indices.tolist() == [[1, 2, 5, 0, 4, 3], [4, 2, 5, 3, 0, 1]]
    torch.testing.assert_close(values, scores.gather(1, indices), equal_nan=True)
    assert ops.topk(scores, 1)[1].tolist() == [[1], [4]]


def test_topk_equals_a_sort_with_python(batch: int = 5, columns: int = 97) -> None:
    scores = torch.randint(0, 9, (batch, columns), generator=torch.Generator().manual_seed(0)).float()
    expected = [sorted(range(columns), key=lambda i, row=row: (-row[i], i))[:13] for row in scores.tolist()]
    assert ops.topk(scores, 13)[1].tolist() == expected


def rerank_operands(m: int = 4, e: int = 9) -> tuple[Tensor, Tensor, list[G2LOperands]]:
    d, images = 8, torch.tensor([0, 1, 0, 2, 2, 0, 1, 1, 0])
    text = G2LOperands(randn(e, 5, d), randn(e, d), randn(m, 6, d, seed=1), randn(m, 6, d, seed=2), norm(d), 1 / 6)
    image = G2LOperands(
        randn(3, 4, d), randn(3, d), randn(m, 7, d, seed=3), randn(m, 7, d, seed=4), norm(d), 0.5, images
    )
    return randn(m, 10), randn(e, 10, seed=9), [text, image]


def test_rerank_forms_agree_with_repeated_and_absent_candidates() -> None:
    mention, entity, parts = rerank_operands()
    candidates = torch.tensor([[3, 3, -1, 8, 0], [-1, -1, -1, -1, -1], [0, 1, 2, 3, 4], [-1, 5, -1, 5, 7]])
    left = ops.rerank_topk(mention, entity, parts, candidates, 5)
    right = reference.rerank_topk_paper(mention, entity, parts, candidates, 5)
    assert torch.equal(left[1], right[1])
    torch.testing.assert_close(left[0], right[0], **EXACT)
    assert left[1][1].tolist() == [-1] * 5
    assert left[0][1].tolist() == [-math.inf] * 5
    assert sorted(left[1][3].tolist()) == [-1, -1, 5, 5, 7]
    assert left[1][3][3:].tolist() == [-1, -1]


def test_rerank_of_all_equals_the_scan() -> None:
    mention, entity, parts = rerank_operands()
    everything = torch.arange(9).expand(4, 9)
    values, ids = ops.rerank_topk(mention, entity, parts, everything, 3)
    scores = mention @ entity.T
    for part in parts:
        g2l = ops.g2l_scores(part.query, part.key, part.value, part.gate, part.norm)
        scores = scores + part.scale * (g2l if part.row is None else g2l[:, part.row])
    expected = ops.topk(scores, 3)
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(values, expected[0], **EXACT)


def test_rerank_components_are_the_terms_of_the_score() -> None:
    mention, entity, parts = rerank_operands()
    candidates = torch.tensor([[3, 3, -1, 8, 0], [-1, -1, -1, -1, -1], [0, 1, 2, 3, 4], [-1, 5, -1, 5, 7]])
    values, ids, terms = ops.rerank_topk(mention, entity, parts, candidates, 5, components=True)
    plain = ops.rerank_topk(mention, entity, parts, candidates, 5)
    assert torch.equal(values, plain[0]) and torch.equal(ids, plain[1])
    assert terms.shape == (3, 4, 5)
    assert bool((terms[:, ids < 0] == -math.inf).all())
    expected = [mention @ entity.T]
    for part in parts:
        g2l = part.scale * reference.g2l_scores_paper(part.query, part.key, part.value, part.gate, part.norm)
        expected.append(g2l if part.row is None else g2l[:, part.row])
    for term, exact in zip(terms, expected, strict=True):
        torch.testing.assert_close(term[ids >= 0], exact.gather(1, ids.clamp_min(0))[ids >= 0], **EXACT)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_rerank_in_several_dtypes_is_in_the_widest(low: torch.dtype) -> None:
    mention, entity, parts = rerank_operands()
    candidates = torch.tensor([[3, 3, -1, 8, 0]] * 4)
    mention, entity = mention.to(low), entity.to(low)
    values, _, terms = ops.rerank_topk(mention, entity, parts, candidates, 5, components=True)
    assert values.dtype == terms.dtype == parts[0].query.dtype
    exact = reference.rerank_topk_paper(mention.double(), entity.double(), parts, candidates, 5)
    torch.testing.assert_close(values, exact[0].to(values), rtol=0, atol=100 * torch.finfo(low).eps)


def test_rerank_without_coarse_vectors_ranks_by_the_parts() -> None:
    mention, entity, parts = rerank_operands()
    candidates = torch.arange(9).expand(4, 9)
    values, ids = ops.rerank_topk(mention[:, :0], entity[:, :0], parts, candidates, 9)
    expected = reference.rerank_topk_paper(mention[:, :0], entity[:, :0], parts, candidates, 9)
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(values, expected[0], **EXACT)


def test_losses_of_extreme_rows_stay_finite() -> None:
    e = randn(4, 6, scale=1e-20)
    for value in (ops.icl_loss(e, e), ops.infonce_loss(1e22 * e, e), ops.mclet_loss(e, e, tau=1e-3)):
        assert value.isfinite()


GOOD = {"query": (3, 4, 8), "key": (2, 5, 8), "value": (2, 5, 8), "gate": (3, 8)}


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("key", (2, 5, 7), r"key: expected shape \(2, 5, 8\), got \(2, 5, 7\)"),
        ("value", (2, 4, 8), r"value: expected shape \(2, 5, 8\), got \(2, 4, 8\)"),
        ("gate", (2, 8), r"gate: expected shape \(3, 8\), got \(2, 8\)"),
        ("query", (3, 8), r"query: expected 3 dimensions, got shape \(3, 8\)"),
    ],
)
def test_g2l_refuses_wrong_shapes(name: str, shape: tuple[int, ...], message: str) -> None:
    tensors = {key: randn(*(shape if key == name else good)) for key, good in GOOD.items()}
    with pytest.raises(ValueError, match=message):
        ops.g2l_scores(**tensors, norm=norm(8))


def test_other_ops_refuse_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="at least one row, got 0"):
        ops.icl_loss(randn(0, 4), randn(0, 4))
    with pytest.raises(ValueError, match="variant: expected 'paper' or 'released', got 'other'"):
        ops.icl_loss(randn(2, 4), randn(2, 4), variant="other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"duplicates: expected shape \(2, 2\)"):
        ops.infonce_loss(randn(2, 4), randn(2, 4), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"duplicates: expected shape \(2,\), got \(3,\)"):
        ops.infonce_loss(randn(2, 4), randn(2, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"duplicates: expected bool pairs or int64 entities, got torch\.int32"):
        ops.mclet_loss(randn(2, 4), randn(2, 4), duplicates=torch.zeros(2, dtype=torch.int32))
    for anchors in (range(0), range(1, 3), range(0, 2, 2), range(-1, 1)):
        with pytest.raises(ValueError, match=r"anchors: expected a range of rows in 0..1, got range"):
            ops.icl_loss(randn(2, 4), randn(2, 4), anchors=anchors)
    with pytest.raises(ValueError, match="k: expected 1 to 3"):
        ops.topk(randn(2, 3), 4)
    with pytest.raises(ValueError, match="pooling: expected"):
        ops.g2l_scores(*(randn(*GOOD[n]) for n in ("query", "key", "value", "gate")), norm(8), pooling="min")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"local: expected shape \(2, 3, 8\)"):
        ops.cross_modal_context(randn(2, 8), randn(3, 3, 8), cross_weights(8, 5, False))
    with pytest.raises(ValueError, match="1 to 8 heads, got 9"):
        ops.cross_modal_context(randn(2, 8), randn(2, 3, 8), cross_weights(8, 5, False)._replace(head_weight=randn(9)))
    with pytest.raises(ValueError, match=r"value: expected shape \(3, 8\)"):
        ops.dual_target(randn(3, 8), randn(2, 8), DualWeights(*[randn(1)] * 4, norm(8), norm(8)))
    mention, entity, parts = rerank_operands()
    with pytest.raises(ValueError, match=r"candidates: expected rows in -1..8, got 0..9"):
        ops.rerank_topk(mention, entity, parts, torch.tensor([[0, 9]] * 4), 1)
    some = torch.tensor([[0, 8]] * 4)
    with pytest.raises(ValueError, match=r"candidates: expected int64, got torch\.int32"):
        ops.rerank_topk(mention, entity, parts, some.int(), 1)
    with pytest.raises(ValueError, match=r"row: expected shape \(9,\), got \(8,\)"):
        ops.rerank_topk(mention, entity, [parts[1]._replace(row=parts[1].row[:8])], some, 1)
    with pytest.raises(ValueError, match=r"row: expected int64, got torch\.int32"):
        ops.rerank_topk(mention, entity, [parts[1]._replace(row=parts[1].row.int())], some, 1)
    with pytest.raises(ValueError, match=r"gate: expected shape \(9, 8\), got \(8, 8\)"):
        ops.rerank_topk(mention, entity, [parts[0]._replace(gate=parts[0].gate[:8])], some, 1)
    with pytest.raises(ValueError, match=r"values, ids: expected values of torch\.float64"):
        ops.topk_merge(randn(2, 1).float(), torch.zeros(2, 1, dtype=torch.int64), randn(2, 3), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_ops_keep_the_dtype(dtype: torch.dtype) -> None:
    tensors = [randn(*GOOD[n]).to(dtype) for n in ("query", "key", "value", "gate")]
    layer = LayerNormWeights(norm(8).weight.to(dtype), norm(8).bias.to(dtype))
    scores = ops.g2l_scores(*tensors, layer)
    exact = ops.g2l_scores(*(t.double() for t in tensors), LayerNormWeights(layer.weight.double(), layer.bias.double()))
    assert scores.dtype == dtype
    # a dozen roundings of values near 10
    torch.testing.assert_close(scores.double(), exact, rtol=0, atol=100 * torch.finfo(dtype).eps)


def test_gradcheck() -> None:
    inputs = [randn(2, 3, 4), randn(2, 3, 4, seed=1), randn(2, 3, 4, seed=2), randn(2, 4)]
    assert torch.autograd.gradcheck(lambda *t: ops.g2l_scores(*t, norm(4)), inputs)
    weights = cross_weights(4, 5, False)
    assert torch.autograd.gradcheck(lambda g, x: ops.cross_modal_context(g, x, weights), [randn(2, 4), randn(2, 3, 4)])
    assert torch.autograd.gradcheck(lambda e, m: ops.icl_loss(e, m, tau=0.5), [randn(3, 4), randn(3, 4, seed=1)])
