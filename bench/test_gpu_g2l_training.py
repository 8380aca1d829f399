"""In-batch global-to-local scores on a GPU, forward and backward, against the paper's form in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bench.cases.training import gradients, random_operands
from bench.gpu_cases import (
    COMPILED,
    DTYPES,
    LENGTHS,
    OURS,
    PAPER,
    SASS,
    TOLERANCE,
    Call,
    Case,
    Cases,
    Plan,
    Setting,
    Sizes,
    bound,
    compiled,
    differentiated,
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
    for batch in sizes.batches:
        peers = (PAPER, COMPILED) if batch == max(sizes.batches) else (PAPER,)
        for modality in LENGTHS:
            for dtype in DTYPES:
                name = f"g2l_scores forward + backward, {modality}, B = {batch:,}, {dtype}"
                yield Plan(name, peers, partial(_case, batch, LENGTHS[modality], dtype, peers, sizes.checked))


def test_g2l_training(name: str, form: str, gpu_cases: Cases, gpu_measure: GPUMeasure) -> None:
    gpu_measure.form(name, gpu_cases.get(name), form)


def _case(batch: int, length: int, dtype: str, peers: tuple[str, ...], checked: int, setting: Setting) -> Case:
    operands = [t.to(setting.device, DTYPES[dtype]) for t in random_operands(batch, length)]
    upstream = torch.randn(batch, batch, generator=torch.Generator().manual_seed(7)).to(operands[0])
    expected = _gradients_of_few(operands, upstream)

    def check(form: str, result: list[Tensor]) -> dict[str, object]:
        """Gradients of a few rows of the whole batch; of ours, scores and gradients of a smaller batch too."""
        found = [result[i][rows] for i, rows, _ in expected]
        error = within(found, [exact for *_, exact in expected], bound(form, dtype))
        if form == OURS:
            few = [t[:checked] if t.dim() > 1 else t for t in operands]
            error = max(error, differentiated(_scores("triton"), _scores("reference"), few, TOLERANCE[dtype]))
        return {"error": error}

    calls: dict[str, Call] = {PAPER: partial(gradients, _with_norm(released_g2l), operands, upstream)}
    if COMPILED in peers:
        calls[COMPILED] = partial(gradients, _with_norm(compiled(reference.g2l_scores)), operands, upstream)
    logits = float(batch * batch * length * length)
    # Q K^T twice, dQ and dK; exponentials in both passes. Operands are read, their gradients written.
    flop = 8 * logits * DV
    moved = float(sum(2 * t.numel() for t in operands) + upstream.numel()) * upstream.element_size()
    return Case(
        {**calls, OURS: partial(gradients, _scores("triton"), operands, upstream)},
        check,
        batch * batch,
        "pairs",
        limit=max(limits(2 * logits, flop, moved, SASS[dtype]).values()),
        flop=flop,
        moved=moved,
        bars={PAPER: 5.0, f"memory x {PAPER}": 20.0} if batch == 1_024 else {},
    )


def _gradients_of_few(operands: list[Tensor], upstream: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Operand, rows and gradients by the reference in fp64: of a few entities and of a few mentions, each against
    everything on the other side."""
    query, key, value, gate, weight, bias = (t.double() for t in operands)
    few = torch.tensor([0, len(query) // 2, len(query) - 1], device=query.device)
    exact = _scores("reference")
    entity = gradients(exact, [query[few], key, value, gate[few], weight, bias], upstream[:, few].double())
    mention = gradients(exact, [query, key[few], value[few], gate, weight, bias], upstream[few].double())
    return [(i, few, side[i]) for i, side in ((0, entity), (3, entity), (1, mention), (2, mention))]


def _scores(backend: Literal["triton", "reference"]) -> Callable[..., Tensor]:
    def run(*operands: Tensor) -> Tensor:
        *tensors, weight, bias = operands
        precision = "bf16" if weight.dtype == torch.bfloat16 else "fp32"
        norm = LayerNormWeights(weight, bias)
        return ops.g2l_scores(*tensors, norm, precision=precision, backend=backend)

    return run


def _with_norm(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *operands: function(*operands[:-2], LayerNormWeights(*operands[-2:]))
