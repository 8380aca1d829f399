"""How far probabilities can be trusted: calibration error, likelihood, and the decision that there is no answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from m3el_fast.calibration import Calibration
from m3el_fast.calibration_fit import Evidence

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Mentions of similar confidence: how many, mean probability of their best entity, share where it is right."""

    mentions: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class NilMetrics:
    """Mentions left without an entity, against those that have no answer.

    Attributes:
        threshold: of the best entity's probability.
        mentions: without an answer.
        dropped: left without an entity; found: those of them that have no answer; lost: those whose best entity is the
            answer.
        precision, recall, f1: of leaving mentions without an entity; 0 where a share is of nothing.
        accuracy: share of all mentions that are treated rightly: linked to their answer or, without one, not linked.
    """

    threshold: float
    mentions: int
    dropped: int
    found: int
    lost: int
    precision: float
    recall: float
    f1: float
    accuracy: float


@dataclass(frozen=True)
class CalibrationMetrics:
    """Probabilities against what is right, over ``mentions`` mentions: all of the split where NIL has a probability,
    else those with an answer.

    Attributes:
        accuracy: share whose best entity is the answer; confidence: mean probability of the best entity.
        nll: mean negative log of the probability of the answer, or of NIL where there is none.
        ece: expected calibration error over :data:`BINS` bins of equal mass.
        bins: of ascending confidence.
        nil: None without a threshold.
    """

    mentions: int
    accuracy: float
    confidence: float
    nll: float
    ece: float
    bins: list[Bin]
    nil: NilMetrics | None

    def record(self) -> dict[str, object]:
        return asdict(self)

    def describe(self) -> str:
        """A line or two for a command's output; precision, recall and F1 only where mentions have no answer."""
        head = f"calibration: ECE {self.ece:.4f}, NLL {self.nll:.4f}, mean probability {self.confidence:.4f}"
        head += f", right {self.accuracy:.4f} ({self.mentions} mentions)"
        if self.nil is None:
            return head
        nil = self.nil
        found = f", {nil.found} of the {nil.mentions} without an answer" if nil.mentions else ""
        scores = f"precision {nil.precision:.4f}, recall {nil.recall:.4f}, F1 {nil.f1:.4f}; " if nil.mentions else ""
        return (
            f"{head}\nno entity below {nil.threshold:.4f}: {nil.dropped} mentions{found}, {nil.lost} whose best entity "
            f"is the answer; {scores}{nil.accuracy:.4f} of all treated rightly"
        )


def calibration_metrics(evidence: Evidence, calibration: Calibration, threshold: float | None) -> CalibrationMetrics:
    """Measure the probabilities of :class:`Calibration`.

    Args:
        evidence: with ``log_partition`` [M, 1] at its temperature.
        threshold: a best entity less probable is no answer; None = every one is.
    """
    log_partition = evidence.log_partition[:, 0]
    probability = calibration.probability(evidence.best, log_partition)
    nil = None if threshold is None else nil_metrics(probability, evidence.right, evidence.nil, threshold)
    total = calibration.total(log_partition)
    likely = evidence.gold / calibration.temperature - total
    if calibration.nil_score is None:
        counted = ~evidence.nil
    else:
        counted = torch.ones_like(evidence.nil)
        likely = torch.where(evidence.nil, calibration.nil_score / calibration.temperature - total, likely)
    confidence, right = probability[counted], evidence.right[counted]
    bins = reliability(confidence, right)
    return CalibrationMetrics(
        mentions=len(right),
        accuracy=float(right.double().mean()),
        confidence=float(confidence.mean()),
        nll=float(-likely[counted].mean()),
        ece=expected_error(bins),
        bins=bins,
        nil=nil,
    )


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> list[Bin]:
    """At most ``bins`` bins of [M] confidences in ascending order, of equal mass but that equal ones stay together."""
    confidence, order = confidence.sort()
    starts = torch.searchsorted(confidence, confidence[torch.arange(bins) * len(confidence) // bins]).unique()
    sizes = starts.diff(append=torch.tensor([len(confidence)])).tolist()
    parts = zip(confidence.split(sizes), right[order].double().split(sizes), strict=True)
    return [Bin(len(own), float(own.mean()), float(share.mean())) for own, share in parts]


def expected_error(bins: list[Bin]) -> float:
    """Mean difference of confidence and accuracy, weighted by mentions (Naeini et al., AAAI 2015)."""
    mentions = sum(one.mentions for one in bins)
    return sum(one.mentions * abs(one.confidence - one.accuracy) for one in bins) / mentions


def nil_metrics(probability: Tensor, right: Tensor, nil: Tensor, threshold: float) -> NilMetrics:
    """Of dropping best entities less probable than ``threshold``; all tensors [M]."""
    dropped = probability < threshold
    mentions, left, found = int(nil.sum()), int(dropped.sum()), int((dropped & nil).sum())
    return NilMetrics(
        threshold=threshold,
        mentions=mentions,
        dropped=left,
        found=found,
        lost=int((dropped & right).sum()),
        precision=found / max(1, left),
        recall=found / max(1, mentions),
        f1=2 * found / max(1, left + mentions),
        accuracy=float(torch.where(nil, dropped, right & ~dropped).double().mean()),
    )
