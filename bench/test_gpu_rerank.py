"""The best of each mention's candidates on a GPU, from a bf16 index, against gathering them all in eager PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.features import DT, DV, LT, LV, NO_IMAGE
from bench.gpu_cases import EAGER, OURS, Case, Cases, Plan, Setting, Sizes, forward
from bench.gpu_device import EXTENSION, MARKS
from bench.gpu_timing import GPUMeasure
from bench.peers import batched_rerank
from bench.roofline import limits
from m3el_fast import ops
from m3el_fast.ops import G2LOperands, LayerNormWeights, reference

pytestmark = [*MARKS, EXTENSION]

_K, _SIXTH = 10, 1 / 6  # M3EL's union is a mean of three, text and image are means of two
_CHECKED = 2  # mentions
# Of the largest score. Ours against the reference of the same roundings: sums in fp32 and exp2 by approximation are off
# by 1e-5, values or coarse vectors that were rounded to bf16 too would be by 1e-3. So is the peer, by logits in bf16.
_TOLERANCE, _PEER_TOLERANCE = 2e-4, 2e-2


def plans(sizes: Sizes) -> Iterator[Plan]:
    mentions, candidates = sizes.rerank
    what = f"{mentions:,} mentions x {candidates:,} candidates, k = {_K}, text and image, bf16 index"
    yield Plan(f"rerank_topk of {what}", (EAGER,), partial(_case, sizes))


def test_rerank(name: str, form: str, gpu_cases: Cases, gpu_measure: GPUMeasure) -> None:
    gpu_measure.form(name, gpu_cases.get(name), form)


def _case(sizes: Sizes, setting: Setting) -> Case:
    mentions, columns = sizes.rerank
    g = torch.Generator(setting.device).manual_seed(9)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=g, device=setting.device)

    def part(rows: int, length: int, row: Tensor | None) -> G2LOperands:
        query, gate = normal(rows, length, DV).bfloat16(), normal(rows, DV, scale=0.58).bfloat16()
        key, value = normal(mentions, length, DV, scale=1.5), normal(mentions, length, DV)
        norm = LayerNormWeights(1 + normal(DV, scale=0.1), normal(DV, scale=0.1))
        return G2LOperands(query, gate, key, value, norm, _SIXTH, row)

    # image 0 is that of the entities without one
    row = torch.randint(1, sizes.images, (sizes.entities,), generator=g, device=setting.device)
    row[torch.rand(sizes.entities, generator=g, device=setting.device) < NO_IMAGE] = 0
    parts = [part(sizes.entities, LT, None), part(sizes.images, LV, row)]
    width = DT + 3 * DV
    coarse = normal(mentions, width, scale=0.2), normal(sizes.entities, width, scale=0.2)
    candidates = torch.randint(0, sizes.entities, (mentions, columns), generator=g, device=setting.device)
    exact = _exact(coarse, parts, candidates)
    best = exact.topk(_K, dim=1).values

    def check(form: str, result: tuple[Tensor, Tensor]) -> dict[str, object]:
        """Of a few mentions: the values, and the scores of the candidates that were chosen."""
        values, ids = (found[:_CHECKED] for found in result)
        place = (candidates[:_CHECKED, None] == ids[:, :, None]).int().argmax(dim=2)
        error = max(_error(found, best) for found in (values, exact.gather(1, place)))
        bound = _TOLERANCE if form == OURS else _PEER_TOLERANCE
        assert error < bound, f"error {error:.2e} against the reference of the same roundings, at most {bound:.0e}"
        return {"error": error}

    pairs = mentions * columns
    # of the image that entities without one share, a mention reads one copy
    images = sum(len(one.unique()) for one in row[candidates])
    moved = float(pairs * (4 * width + 2 * (LT + 1) * DV) + images * 2 * (LV + 1) * DV)
    logits = float(pairs * LT**2 + images * LV**2)
    arguments = (*coarse, parts, candidates, _K)
    return Case(
        {
            EAGER: forward(batched_rerank, *arguments),
            OURS: forward(ops.rerank_topk, *arguments, precision="bf16", backend="cuda"),
        },
        check,
        pairs,
        "pairs",
        limit=max(limits(logits, 2.0 * logits * DV, moved, "BF16").values()),
        flop=2.0 * logits * DV,
        moved=moved,
        bars={EAGER: 20.0, f"memory x {EAGER}": 20.0, "share of limit": 0.4} if mentions == 1_024 else {},
    )


def _exact(coarse: tuple[Tensor, Tensor], parts: list[G2LOperands], candidates: Tensor) -> Tensor:
    """All scores of a few mentions by the reference in fp64, operands rounded as the kernel rounds them."""
    own = candidates[:_CHECKED]
    scores = torch.einsum("md,mcd->mc", coarse[0][:_CHECKED].double(), coarse[1][own].double())
    for part in parts:
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
