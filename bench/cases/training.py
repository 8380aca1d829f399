"""Forward and backward of in-batch ``g2l_scores``, text and image: the op, and the released form in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.features import DV, LT, LV
from bench.memory import peak_memory
from bench.peers import released_g2l
from m3el_fast import ops
from m3el_fast.ops import LayerNormWeights, reference

_LOGIT_STD = 1.53  # of a trained model: see bench.features
_CHECKED = 6  # rows whose gradients are compared with the reference's in fp64
# relative error of every gradient, Frobenius norm: rounding of fp32 sums, and of bf16 operands (2^-9) at this spread
_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "eager": 1e-4}


class Training:
    """One step's global-to-local scores [B, B] of both modalities and the gradients of all that they depend on.

    Args:
        batch: B; form: ``fp32`` or ``bf16`` (the op at that precision), or ``eager``.
    """

    def __init__(self, batch: int, form: str) -> None:
        self.form = form
        self.operands = [random_operands(batch, length) for length in (LT, LV)]
        self.upstream = torch.randn(batch, batch, generator=torch.Generator().manual_seed(7)) / batch

    def verify(self) -> float:
        """Largest relative error of a gradient against the reference in fp64, asserted to be within bounds."""
        worst = 0.0
        upstream = self.upstream[:_CHECKED, :_CHECKED]
        for operands in self.operands:
            few = [t[:_CHECKED] if t.dim() > 1 else t for t in operands]
            got = gradients(lambda *t: self._scores(list(t)), few, upstream)
            exact = gradients(
                lambda q, k, v, g, w, b: reference.g2l_scores(q, k, v, g, LayerNormWeights(w, b)),
                [t.double() for t in few],
                upstream.double(),
            )
            errors = [float((x - y).norm() / y.norm()) for x, y in zip(got, exact, strict=True)]
            worst = max(worst, *errors)
        assert worst <= _TOLERANCE[self.form], f"relative error of a gradient: {worst}"
        return worst

    def run(self) -> None:
        for operands in self.operands:
            gradients(lambda *t: self._scores(list(t)), operands, self.upstream)

    def peak(self) -> int:
        return peak_memory(self.run)

    def _scores(self, operands: list[Tensor]) -> Tensor:
        query, key, value, gate, weight, bias = operands
        norm = LayerNormWeights(weight, bias)
        if self.form == "eager":
            return released_g2l(query, key, value, gate, norm)
        return ops.g2l_scores(query, key, value, gate, norm, precision="bf16" if self.form == "bf16" else "fp32")


def random_operands(batch: int, length: int) -> list[Tensor]:
    """query, key, value [B, L, d], gate [B, d], LayerNorm weight and bias [d]."""
    g = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    token = (batch, length, DV)
    query, key = (_LOGIT_STD**0.5 * normal(*token) for _ in range(2))
    return [query, key, normal(*token), 0.58 * normal(batch, DV), 1 + 0.1 * normal(DV), 0.1 * normal(DV)]


def gradients(scores: object, operands: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in operands]
    result: Tensor = scores(*leaves)  # type: ignore[operator]
    return list(torch.autograd.grad(result, leaves, upstream))
