"""The contrastive loss on a GPU, forward and backward, against the [B, B] matrices of the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.gpu_cases import (
    COMPILED,
    DTYPES,
    EAGER,
    OURS,
    SASS,
    TOLERANCE,
    Case,
    Cases,
    Plan,
    Setting,
    Sizes,
    bound,
    compiled,
    differentiated,
    step,
    within,
)
from bench.gpu_device import MARKS
from bench.gpu_timing import GPUMeasure
from bench.roofline import limits
from bench.scales import DT
from m3el_fast import ops
from m3el_fast.ops import reference_losses

pytestmark = MARKS

_EXACT = partial(reference_losses.icl_loss, tau=0.03, beta=0.8, gamma=1.0, variant="paper")
_TRITON = partial(ops.icl_loss, backend="triton")


def plans(sizes: Sizes) -> Iterator[Plan]:
    for batch in sizes.loss_batches:
        peers = (EAGER, COMPILED) if batch == max(sizes.loss_batches) else (EAGER,)
        for dtype in DTYPES:
            name = f"icl_loss forward + backward, B = {batch:,}, d = {DT}, {dtype}"
            yield Plan(name, peers, partial(_case, batch, dtype, peers, 3 * sizes.checked))


def test_icl_loss(name: str, form: str, gpu_cases: Cases, gpu_measure: GPUMeasure) -> None:
    gpu_measure.form(name, gpu_cases.get(name), form)


def _case(batch: int, dtype: str, peers: tuple[str, ...], checked: int, setting: Setting) -> Case:
    g = torch.Generator().manual_seed(batch)
    mention = torch.randn(batch, DT, generator=g)
    # a loss far from 0, where 1 - softmax would cancel in fp32 in any implementation
    entity = 0.1 * mention + torch.randn(batch, DT, generator=g)
    rows = [entity.to(setting.device, DTYPES[dtype]), mention.to(setting.device, DTYPES[dtype])]
    whole = _in_blocks(*(t.double() for t in rows))

    def check(form: str, result: list[Tensor]) -> dict[str, object]:
        """The whole batch's loss; of ours, loss and gradients of a smaller batch too."""
        error = within(result[:1], [whole], bound(form, dtype))
        if form == OURS:
            error = max(error, differentiated(_TRITON, _EXACT, [t[:checked] for t in rows], TOLERANCE[dtype]))
        return {"error": error}

    calls = {EAGER: step(_EXACT, rows)}
    if COMPILED in peers:
        calls[COMPILED] = step(compiled(_EXACT), rows)
    # forward: E M, half of E E and of M M; backward: these again and twice as much for the gradients
    flop, exponentials = 16.0 * batch**2 * DT, 4.0 * batch**2
    moved = 4.0 * batch * DT * rows[0].element_size()
    return Case(
        {**calls, OURS: step(_TRITON, rows)},
        check,
        batch,
        "pairs",
        limit=max(limits(exponentials, flop, moved, SASS[dtype]).values()),
        flop=flop,
        moved=moved,
        bars={EAGER: 2.0, f"memory x {EAGER}": 20.0} if batch == 32_768 else {},
    )


def _in_blocks(entity: Tensor, mention: Tensor, block: int = 1_024) -> Tensor:
    """The loss as the reference defines it, a block of rows at a time."""
    sides = [torch.nn.functional.normalize(t, dim=1) for t in (entity, mention)]
    total = entity.new_zeros(())
    for same, other in (sides, sides[::-1]):
        for start in range(0, len(entity), block):
            part = same[start : start + block]
            across, along = part @ other.T / 0.03, part @ same.T / 0.03 + math.log(0.8)
            along[:, start:].fill_diagonal_(-math.inf)
            positive = across[:, start:].diagonal()
            total = total + (torch.cat([across, along], dim=1).logsumexp(dim=1) - positive).sum()
    return total / (2 * len(entity))
