"""``calibration.json``: what turns a checkpoint's scores into probabilities, kept in its folder."""

from __future__ import annotations

from numbers import Real
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from m3el_fast.errors import InputError
from m3el_fast.side_files import SideFile

CALIBRATION_FILE = "calibration.json"
HOW_TO_CALIBRATE = "python -m m3el_fast.calibrate CHECKPOINT fits probabilities to the dev split"

_Share = Annotated[float, Field(ge=0, le=1)]


class Calibration(SideFile):
    """Probabilities of the entities of a KB for a mention: a softmax of score / temperature (Guo et al., ICML 2017).

    Where the mentions that it was fitted on had some without an answer, having none (NIL) takes part like one more
    entity, whose score is the same for all mentions. Fitted by :func:`m3el_fast.calibrate.calibrate`.

    Attributes:
        temperature: of the softmax.
        nil_score: of NIL, on the scale of union scores; None = every mention is taken to have an answer.
        nil_threshold: a best entity less probable than that is no answer; None = every one is.
        data: name of the data set; entities: of its KB.
        mentions: of the dev split that it was fitted on, those without an answer included; nil: how many these are.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    file, content = CALIBRATION_FILE, "a calibration as m3el_fast writes it"
    temperature: Annotated[float, Field(gt=0)]
    nil_score: float | None
    nil_threshold: _Share | None
    data: str
    entities: int
    mentions: int
    nil: int

    def probability(self, scores: Tensor, log_partition: Tensor) -> Tensor:
        """Probabilities fp64 of entities with union scores [M, ...].

        Args:
            log_partition: [M] fp64, of the entities that there are to choose from
                (:attr:`TopK.log_partition` at the temperature).
        """
        total = self.total(log_partition).reshape(-1, *[1] * (scores.dim() - 1))
        return (scores.double() / self.temperature - total).exp().nan_to_num(nan=0.0).clamp(max=1.0)

    def total(self, log_partition: Tensor) -> Tensor:
        """The log partition [M] fp64 of the entities and NIL."""
        if self.nil_score is None:
            return log_partition
        nil = torch.tensor(self.nil_score / self.temperature, dtype=torch.float64)
        return torch.logaddexp(log_partition, nil)


def check_threshold(where: str, given: float | None) -> None:
    """Refuse a NIL threshold that is no probability. Raises InputError."""
    if given is not None and (isinstance(given, bool) or not isinstance(given, Real) or not 0 <= given <= 1):
        raise InputError(where, "a probability, from 0 to 1", given)


def chosen_threshold(where: str, calibration: Calibration | None, given: float | None) -> float | None:
    """The NIL threshold to use: the one ``given``, else the calibration's, which may be None.

    Raises:
        InputError: it is no probability, or there are no probabilities to compare with it.
    """
    check_threshold(where, given)
    if given is None:
        return None if calibration is None else calibration.nil_threshold
    if calibration is None:
        raise InputError(where, "a calibrated checkpoint", f"one without {CALIBRATION_FILE}", HOW_TO_CALIBRATE)
    return float(given)
