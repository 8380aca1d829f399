"""Fitting a temperature, a score of NIL and a threshold to scored mentions, by maximum likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_LOW, _HIGH = -20, 28  # quarters of an octave: from 1/32 to 128; training losses make it about 1
TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(_LOW, _HIGH + 1))
"""At which log partitions are needed; between them they are interpolated, to within 0.002."""

_STEPS = 101  # of the search on both sides of the best of TEMPERATURES: 0.35% each
_AS_GOOD = 1e-6  # nats of a mention
_BISECTIONS = 100


@dataclass(frozen=True)
class Evidence:
    """What scoring said of M mentions.

    Attributes:
        gold: [M] fp64, union score of the answer; NaN = the mention has none.
        best: [M] fp64, union score of the best entity.
        right: [M] bool, whether that is the answer.
        log_partition: [M, T] fp64 at :data:`TEMPERATURES`, or at one temperature.
    """

    gold: Tensor
    best: Tensor
    right: Tensor
    log_partition: Tensor

    @property
    def nil(self) -> Tensor:
        """[M] bool: the mention has no answer."""
        return self.gold.isnan()

    def at(self, temperature: float) -> Evidence:
        """With the log partition [M, 1] at one temperature, interpolated between :data:`TEMPERATURES`."""
        return replace(self, log_partition=self.partition(torch.tensor([temperature], dtype=torch.float64)))

    def partition(self, temperatures: Tensor) -> Tensor:
        """Log partition [M, W] at ``temperatures`` [W] within the range of :data:`TEMPERATURES`, interpolated.

        Interpolated is how far it is above that of the best entity alone, which is smooth: 0 to log E.
        """
        nodes = torch.tensor(TEMPERATURES, dtype=torch.float64)
        best = self.best[:, None]
        above = interpolate(self.log_partition - best / nodes, nodes.log(), temperatures.log())
        return above + best / temperatures


def fit(evidence: Evidence) -> tuple[float, float | None, float | None]:
    """Temperature, NIL score and NIL threshold; the latter two are None where every mention has an answer.

    Temperature and NIL score minimise the mean negative log-likelihood of the answers, for a mention without one that
    of NIL. The threshold maximises the share of mentions that are treated rightly: linked to their answer or, if they
    have none, not linked.

    Of temperatures that are as good the highest is taken: it claims least (where every answer is far ahead, the
    likelihood only grows towards 0, and there is no best one).
    """
    nodes = torch.tensor(TEMPERATURES, dtype=torch.float64)
    nll, _ = _likelihood(evidence, nodes, evidence.log_partition)
    middle = nodes[_highest_best(nll)]
    factor = torch.linspace(-1, 1, _STEPS, dtype=torch.float64).mul(math.log(nodes[1] / nodes[0])).exp()
    fine = (middle * factor).clamp(nodes[0], nodes[-1])
    partition = evidence.partition(fine)
    nll, nil = _likelihood(evidence, fine, partition)
    chosen = _highest_best(nll)
    temperature = float(fine[chosen])
    if not evidence.nil.any():
        return temperature, None, None
    total = torch.logaddexp(partition[:, chosen], nil[chosen])
    probability = (evidence.best / temperature - total).exp()
    return temperature, float(nil[chosen]) * temperature, threshold(probability, evidence.right, evidence.nil)


def interpolate(values: Tensor, at: Tensor, wanted: Tensor) -> Tensor:
    """Cubic interpolation of ``values`` [M, T] at the equidistant ``at`` [T], at least 4, to ``wanted`` [W]: [M, W]."""
    step = at[1] - at[0]
    first = ((wanted - at[0]) / step).floor().long().sub_(1).clamp_(0, len(at) - 4)
    place = (wanted - at[first]) / step
    result = torch.zeros(len(values), len(wanted), dtype=values.dtype)
    for node in range(4):
        weight = torch.ones_like(place)
        for other in range(4):
            if other != node:
                weight *= (place - other) / (node - other)
        result += weight * values[:, first + node]
    return result


def threshold(probability: Tensor, right: Tensor, nil: Tensor) -> float:
    """The threshold under which best entities are dropped that treats most mentions rightly, the lowest of several.

    Args:
        probability: [M] of the best entity; right: [M] bool, it is the answer; nil: [M] bool, there is no answer.
    """
    order = probability.argsort()
    ascending = probability[order]
    # with the c least probable ones dropped: those of them without an answer, and the right ones among the others
    dropped = torch.cat([torch.zeros(1, dtype=torch.int64), nil[order].long().cumsum(0)])
    kept = right.sum() - torch.cat([torch.zeros(1, dtype=torch.int64), right[order].long().cumsum(0)])
    possible = torch.cat([torch.tensor([True]), ascending.diff() > 0, ascending[-1:] < 1])  # no threshold is above 1
    gained = torch.where(possible, dropped + kept, -1)
    count = int(gained.argmax())
    if count == 0:
        return 0.0
    return 1.0 if count == len(order) else float(ascending[count - 1 : count + 1].mean())


def _highest_best(nll: Tensor) -> int:
    return int((nll <= nll.min() + _AS_GOOD).nonzero()[-1])


def _likelihood(evidence: Evidence, temperatures: Tensor, partition: Tensor) -> tuple[Tensor, Tensor]:
    """Mean negative log-likelihood [T], and the best NIL logit [T] (-inf where every mention has an answer).

    Args:
        temperatures: [T]; partition: [M, T] of the entities there.
    """
    nil = evidence.nil
    gold = evidence.gold[:, None] / temperatures
    logit = _nil_logit(partition, int(nil.sum()))
    total = torch.logaddexp(partition, logit)
    return (total - torch.where(nil[:, None], logit, gold)).mean(dim=0), logit


def _nil_logit(partition: Tensor, count: int) -> Tensor:
    """The logit [T] at which the probabilities of NIL sum to the ``count`` of mentions without an answer: there the
    likelihood, convex in the logit, has its maximum."""
    if count == 0:
        return torch.full((partition.shape[1],), -math.inf, dtype=partition.dtype)
    finite = partition.clamp_min(torch.finfo(torch.float32).min)
    low, high = finite.amin(dim=0) - 50, finite.amax(dim=0) + 50
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = (middle - finite).sigmoid().sum(dim=0) < count
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
