"""What ``bench/gpu_table.py`` runs of the CUDA extension: top-k, and the top-k of each mention's own candidates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.features import DT, DV, LT, LV, NO_IMAGE
from bench.gpu_measure import Row
from bench.gpu_parts import EAGER, Part, Sizes, timed_row
from bench.peers import batched_rerank
from bench.roofline import limits
from m3el_fast import ops
from m3el_fast.ops import G2LOperands, LayerNormWeights, reference

TORCH = "torch.topk"
_K, _SIXTH = 10, 1 / 6  # M3EL's union is a mean of three, text and image are means of two
# Of the largest score. Ours against the reference of the same roundings: sums in fp32 and exp2 by approximation are off
# by 1e-5, values or coarse vectors that were rounded to bf16 too would be by 1e-3. So is the peer, by logits in bf16.
_TOLERANCE, _PEER_TOLERANCE = 2e-4, 2e-2


def topk(sizes: Sizes, device: str) -> Iterator[Row]:
    """The k largest of each row, against ``torch.topk``, which need not keep ties in order."""
    for rows, columns, k in sizes.selections:
        scores = torch.randn(rows, columns, generator=torch.Generator(device).manual_seed(k), device=device)
        values, ids = ops.topk(scores, k, backend="cuda")
        few = slice(0, sizes.checked)
        expected = reference.topk(scores[few], k)
        assert torch.equal(values[few], expected[0]) and torch.equal(ids[few], expected[1]), "top-k is wrong"
        assert torch.equal(values, scores.topk(k, dim=1).values), "top-k is wrong"
        yield timed_row(
            f"topk of {rows:,} x {columns:,}, k = {k}, fp32",
            None,
            partial(ops.topk, scores, k, backend="cuda"),
            {TORCH: partial(torch.topk, scores, k, dim=1)},
            device,
            items=scores.numel(),
            unit="scores",
            limit=limits(0.0, 0.0, 4.0 * scores.numel(), "BF16")["bytes"],
            goals={f"x {TORCH}": 3.0} if rows * columns > 1 << 20 else {},
        )


def rerank(sizes: Sizes, device: str) -> Iterator[Row]:
    """The best of each mention's candidates in a bf16 index, against gathering them all in eager PyTorch."""
    mentions, columns = sizes.rerank
    g = torch.Generator(device).manual_seed(9)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=g, device=device)

    def part(rows: int, length: int, row: Tensor | None) -> G2LOperands:
        query, gate = normal(rows, length, DV).bfloat16(), normal(rows, DV, scale=0.58).bfloat16()
        key, value = normal(mentions, length, DV, scale=1.5), normal(mentions, length, DV)
        norm = LayerNormWeights(1 + normal(DV, scale=0.1), normal(DV, scale=0.1))
        return G2LOperands(query, gate, key, value, norm, _SIXTH, row)

    # image 0 is that of the entities without one
    row = torch.randint(1, sizes.images, (sizes.entities,), generator=g, device=device)
    row[torch.rand(sizes.entities, generator=g, device=device) < NO_IMAGE] = 0
    parts = [part(sizes.entities, LT, None), part(sizes.images, LV, row)]
    width = DT + 3 * DV
    coarse = normal(mentions, width, scale=0.2), normal(sizes.entities, width, scale=0.2)
    candidates = torch.randint(0, sizes.entities, (mentions, columns), generator=g, device=device)
    arguments = (*coarse, parts, candidates, _K)
    own = partial(ops.rerank_topk, *arguments, precision="bf16", backend="cuda")
    few = slice(0, 2)
    exact = _exact(coarse, parts, candidates, few)
    best = exact.topk(_K, dim=1).values
    values, ids = (found[few] for found in own())
    of_ids = exact.gather(1, (candidates[few][:, None] == ids[:, :, None]).int().argmax(dim=2))
    error = max(_error(found, best) for found in (values, of_ids))
    assert error < _TOLERANCE, f"rerank_topk: error {error:.2e} against the reference of the same roundings"
    peer = batched_rerank(coarse[0][few], coarse[1], _mentions(parts, few), candidates[few], _K)[0]
    assert _error(peer, best) < _PEER_TOLERANCE, "the peer is wrong"
    pairs = float(mentions * columns)
    # of the image that entities without one share, a mention reads one copy
    images = sum(len(one.unique()) for one in row[candidates])
    stored = pairs * (4 * width + 2 * (LT + 1) * DV) + images * 2.0 * (LV + 1) * DV
    logits = pairs * LT**2 + images * LV**2
    yield timed_row(
        f"rerank_topk of {mentions:,} mentions x {columns:,} candidates, k = {_K}, text and image, bf16 index",
        error,
        own,
        {EAGER: partial(batched_rerank, *arguments)},
        device,
        items=mentions * columns,
        unit="pairs",
        limit=max(limits(logits, 2.0 * logits * DV, stored, "BF16").values()),
        goals={f"x {EAGER}": 20.0, f"memory x {EAGER}": 20.0, "share of limit": 0.4} if mentions == 1_024 else {},
    )


def _exact(coarse: tuple[Tensor, Tensor], parts: list[G2LOperands], candidates: Tensor, few: slice) -> Tensor:
    """All scores of a few mentions by the reference in fp64, operands rounded as the kernel rounds them."""
    own = candidates[few]
    scores = torch.einsum("md,mcd->mc", coarse[0][few].double(), coarse[1][own].double())
    for part in _mentions(parts, few):
        at = own if part.row is None else part.row[own]
        norm = LayerNormWeights(part.norm.weight.double(), part.norm.bias.double(), part.norm.eps)
        for i, rows in enumerate(at):
            one = slice(i, i + 1)
            operands = (part.query[rows], part.key[one], part.value[one], part.gate[rows])
            g2l = reference.g2l_scores(*(t.double() for t in operands), norm, bf16=True)
            scores[i] += part.scale * g2l[0]
    return scores


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


def _mentions(parts: list[G2LOperands], few: slice) -> list[G2LOperands]:
    return [part._replace(key=part.key[few], value=part.value[few]) for part in parts]


PARTS: dict[str, Part] = {"topk": topk, "rerank": rerank}
