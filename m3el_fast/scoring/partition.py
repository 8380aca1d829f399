"""The partition function of a softmax over entities: the log of the sum of exp(score / temperature), block by block."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float32).max


class Partition:
    """Of M mentions at T temperatures; sums are kept in fp64, relative to the largest score so far.

    Args:
        temperatures: above 0.
        device: of the scores.
    """

    def __init__(self, mentions: int, temperatures: tuple[float, ...], device: torch.device) -> None:
        self._temperatures = temperatures
        self._divisors = torch.tensor(temperatures, dtype=torch.float64, device=device)
        self._peak = torch.full((mentions, 1), -_LARGEST, device=device)  # -inf - -inf would be no number
        self._sums = torch.zeros(mentions, len(temperatures), dtype=torch.float64, device=device)

    def add(self, scores: Tensor, counted: Tensor) -> None:
        """Take in the scores [M, n] fp32, without NaN, of n entities, of which ``counted`` [n] bool count."""
        if not self._temperatures:
            return
        scores = scores.masked_fill(~counted, -torch.inf)
        peak = torch.maximum(self._peak, scores.amax(dim=1, keepdim=True)).clamp_(max=_LARGEST)
        self._sums *= self._weights(self._peak, peak)
        self._peak = peak
        scores.sub_(peak).clamp_(max=0)  # an infinite score counts as the largest finite one
        for place, temperature in enumerate(self._temperatures):
            self._sums[:, place] += (scores / temperature).exp_().sum(dim=1)

    def replace(self, mention: Tensor, old: Tensor, new: Tensor) -> None:
        """Put the scores ``new`` [P] in the place of the scores ``old`` [P] that were added for ``mention`` [P]."""
        if not self._temperatures:
            return
        peak = self._peak[mention]
        difference = self._weights(new[:, None], peak) - self._weights(old[:, None], peak)
        self._sums.index_add_(0, mention, difference)

    def value(self) -> Tensor:
        """[M, T] fp64; -inf where nothing was added."""
        return self._peak.double() / self._divisors + self._sums.clamp_min(0).log()

    def _weights(self, scores: Tensor, peak: Tensor) -> Tensor:
        gaps = scores.nan_to_num(nan=-torch.inf, posinf=_LARGEST, neginf=-torch.inf).double() - peak.double()
        return (gaps / self._divisors).exp()


def log_partition(scores: Tensor, number: Tensor | None, temperatures: tuple[float, ...]) -> Tensor:
    """As :meth:`Partition.value`, [M, T] fp64, of scores [M, C] that are all there, -inf = none.

    Args:
        number: [M, C] int64, how many entities have each score; None = one.
    """
    scores = scores.nan_to_num(nan=-torch.inf, posinf=_LARGEST, neginf=-torch.inf).double()
    extra = torch.zeros_like(scores) if number is None else number.double().log()
    values = [torch.logsumexp(scores / temperature + extra, dim=1) for temperature in temperatures]
    return torch.stack(values, dim=1) if values else scores.new_empty(len(scores), 0)
