"""Global-to-local scores of a whole test set on a GPU, by the kernel alone, against eager PyTorch on a slice.

Products of ours are in bf16, peers are in bf16 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.gpu_cases import (
    COMPILED,
    LENGTHS,
    OURS,
    PAPER,
    Case,
    Cases,
    Plan,
    Setting,
    Sizes,
    bound,
    compiled,
    forward,
    within,
)
from bench.gpu_device import MARKS
from bench.gpu_timing import GPUMeasure
from bench.peers import released_g2l
from bench.roofline import limits
from bench.scales import DV
from m3el_fast import ops
from m3el_fast.ops import LayerNormWeights, reference

pytestmark = MARKS


def plans(sizes: Sizes) -> Iterator[Plan]:
    """All mentions x all entities (or distinct images), bf16 products as in a scan."""
    for modality, entities in (("text", sizes.entities), ("image", sizes.images)):
        name = f"g2l_scores, {modality}, {sizes.mentions:,} x {entities:,}, bf16 products"
        yield Plan(name, (PAPER, COMPILED), partial(_case, sizes, entities, LENGTHS[modality]))


def test_g2l_scan(name: str, form: str, gpu_cases: Cases, gpu_measure: GPUMeasure) -> None:
    gpu_measure.form(name, gpu_cases.get(name), form)


def _case(sizes: Sizes, entities: int, length: int, setting: Setting) -> Case:
    g = torch.Generator(setting.device).manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=setting.device)

    mentions = sizes.mentions
    query, gate = normal(entities, length, DV).bfloat16(), 0.58 * normal(entities, DV)
    key, value = 1.5 * normal(mentions, length, DV), normal(mentions, length, DV)
    norm = LayerNormWeights(1 + 0.1 * normal(DV), 0.1 * normal(DV))
    few_m, few_e = min(sizes.slice[0], mentions), min(sizes.slice[1], entities)
    # peers have bf16 operands throughout, as fast as they can be
    few = [t.bfloat16() for t in (query[:few_e], key[:few_m], value[:few_m], gate[:few_e])]
    few_norm = LayerNormWeights(norm.weight.bfloat16(), norm.bias.bfloat16())

    def some(size: int, count: int) -> Tensor:
        return torch.linspace(0, size - 1, min(size, count), device=setting.device).long()

    def check(form: str, result: Tensor) -> dict[str, object]:
        """The scores of mentions and entities from all over ``result``."""
        m, e = some(len(result), 17), some(result.shape[1], sizes.checked)
        exact = reference.g2l_scores(
            *(t.double() for t in (query[e], key[m], value[m], gate[e])),
            LayerNormWeights(norm.weight.double(), norm.bias.double()),
        )
        return {"error": within([result[m][:, e]], [exact], bound(form, "bf16"))}

    pairs, logits = mentions * entities, length * length
    flop = 2.0 * pairs * (logits + length) * DV
    moved = query.numel() * 2.0 + 4.0 * (gate.numel() + key.numel() + value.numel() + pairs)
    return Case(
        {
            PAPER: forward(released_g2l, *few, few_norm),
            COMPILED: forward(compiled(reference.g2l_scores), *few, few_norm),
            OURS: forward(ops.g2l_scores, query, key, value, gate, norm, precision="bf16", backend="triton"),
        },
        check,
        pairs,
        "pairs",
        slices={PAPER: few_m * few_e, COMPILED: few_m * few_e},
        limit=max(limits(float(pairs * logits), flop, moved, "BF16").values()),
        flop=flop,
        moved=moved,
    )
