"""A step of ``m3el train`` on the sample set and its parts: batch, encoder, matcher, loss, backward, optimiser."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from bench.cases import sample
from bench.memory import peak_memory
from m3el_fast.features import Features, Inputs, Scores
from m3el_fast.losses import matching_losses
from m3el_fast.models import MELModel
from m3el_fast.trainer import make_optimizer

PARTS = ("batch", "encoder", "matcher", "loss", "backward", "optimiser")

_TOLERANCE = 1e-3  # of the loss, and of its gradients' Frobenius norm, against fp64
_Result = TypeVar("_Result")


class Step:
    """Steps of ``batch`` mentions of the data set in the folder ``data``, at the sample preset's sizes."""

    def __init__(self, data: str, batch: int) -> None:
        self.config, self.model, self.data = sample.load(data)
        self.batch, self.split = batch, self.data.splits["train"]
        self.optimizer = make_optimizer(self.model.train(), self.config.train)
        self.generator = torch.Generator().manual_seed(13)
        self.seconds: dict[str, float] = {}

    def verify(self) -> None:
        """The parts give the model's loss; it and its gradients by the features are those of fp64 (the reference)."""
        entities, mentions, gold = self._inputs()
        with torch.no_grad():
            left, right = self.model.features(entities), self.model.features(mentions)
            whole = self.model(entities, mentions, gold)["total"]
        loss, gradients = _loss_and_gradients(self.model, left, right, gold)
        torch.testing.assert_close(loss, whole, rtol=1e-5, atol=0)
        wide = copy.deepcopy(self.model).double()
        exact, exact_gradients = _loss_and_gradients(wide, _double(left), _double(right), gold)
        torch.testing.assert_close(loss.double(), exact, rtol=_TOLERANCE, atol=0)
        for found, expected in zip(gradients, exact_gradients, strict=True):
            assert (found - expected).norm() <= _TOLERANCE * expected.norm()

    def run(self) -> dict[str, float]:
        """One step; the seconds of each of ``PARTS``."""
        entities, mentions, gold = self._timed("batch", self._inputs)
        left, right = self._timed("encoder", lambda: (self.model.features(entities), self.model.features(mentions)))
        scores = self._timed("matcher", lambda: _scores(self.model, left, right))
        loss = self._timed("loss", lambda: _loss(self.model, scores, left, right, gold))
        self._timed("backward", loss.backward)
        self._timed("optimiser", self._update)
        return self.seconds

    def peak(self) -> int:
        return peak_memory(self.run)

    def load(self) -> None:
        """The batch alone."""
        self._inputs()

    def _inputs(self) -> tuple[Inputs, Inputs, Tensor]:
        rows = torch.randint(len(self.split.gold), (self.batch,), generator=self.generator)
        share = torch.rand(self.batch, generator=self.generator)
        gold = self.split.gold[rows]
        entities, mentions = self.data.entities.inputs(gold, share), self.split.source.inputs(rows)
        assert isinstance(entities, Inputs) and isinstance(mentions, Inputs)
        return entities, mentions, gold

    def _update(self) -> None:
        assert self.config.train.clip_norm is not None
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _timed(self, part: str, call: Callable[[], _Result]) -> _Result:
        start = time.perf_counter()
        result = call()
        self.seconds[part] = time.perf_counter() - start
        return result


def _scores(model: MELModel, entities: Features, mentions: Features) -> Scores:
    scores: Scores = model.matcher.score(model.matcher.mention_side(mentions), model.matcher.entity_side(entities))
    return scores


def _loss(model: MELModel, scores: Scores, entities: Features, mentions: Features, gold: Tensor) -> Tensor:
    """As :meth:`MELModel.losses` adds them up in one process."""
    assert model.contrastive is not None
    losses = matching_losses(scores, model.config.model, gold[:, None] == gold)
    contrastive = model.contrastive(_globals(entities), _globals(mentions), gold)
    return torch.stack([*losses.values(), contrastive]).sum()


def _globals(features: Features) -> tuple[Tensor, Tensor]:
    return features.text_global, features.image_global[features.image_index]


def _loss_and_gradients(
    model: MELModel, entities: Features, mentions: Features, gold: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss, and its gradients by the entities' and the mentions' four features."""
    names = ("text_global", "text_local", "image_global", "image_local")
    left, right = (
        replace(side, **{name: getattr(side, name).detach().requires_grad_() for name in names})
        for side in (entities, mentions)
    )
    loss = _loss(model, _scores(model, left, right), left, right, gold)
    return loss.detach(), torch.autograd.grad(loss, [getattr(side, name) for side in (left, right) for name in names])


def _double(features: Features) -> Features:
    wide = {
        name: tensor.double()
        for name, tensor in vars(features).items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }
    return replace(features, **wide)
