"""The k largest of each row on a GPU, against ``torch.topk``, which need not keep ties in order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.gpu_cases import OURS, Case, Cases, Plan, Setting, Sizes, forward
from bench.gpu_device import EXTENSION, MARKS
from bench.gpu_timing import GPUMeasure
from bench.roofline import limits
from m3el_fast import ops
from m3el_fast.ops import reference

pytestmark = [*MARKS, EXTENSION]

TORCH = "torch.topk"


def plans(sizes: Sizes) -> Iterator[Plan]:
    for rows, columns, k in sizes.selections:
        name = f"topk of {rows:,} x {columns:,}, k = {k}, fp32"
        yield Plan(name, (TORCH,), partial(_case, rows, columns, k, sizes.checked))


def test_topk(name: str, form: str, gpu_cases: Cases, gpu_measure: GPUMeasure) -> None:
    gpu_measure.form(name, gpu_cases.get(name), form)


def _case(rows: int, columns: int, k: int, checked: int, setting: Setting) -> Case:
    g = torch.Generator(setting.device).manual_seed(k)
    scores = torch.randn(rows, columns, generator=g, device=setting.device)

    def check(form: str, result: tuple[Tensor, Tensor]) -> dict[str, object]:
        """Bit for bit: the values of all rows; of ours, values and places of a few by the reference."""
        values, ids = result
        assert torch.equal(values, scores.topk(k, dim=1).values), "top-k is wrong"
        if form == OURS:
            expected = reference.topk(scores[:checked], k)
            assert torch.equal(values[:checked], expected[0]), "top-k is wrong"
            assert torch.equal(ids[:checked], expected[1]), "top-k is wrong"
        return {}

    moved = 4.0 * scores.numel()
    return Case(
        {TORCH: forward(torch.topk, scores, k, dim=1), OURS: forward(ops.topk, scores, k, backend="cuda")},
        check,
        scores.numel(),
        "scores",
        limit=limits(0.0, 0.0, moved, "BF16")["bytes"],
        moved=moved,
        bars={TORCH: 3.0} if scores.numel() > 1 << 20 else {},
    )
