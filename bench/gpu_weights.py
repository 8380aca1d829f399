"""Random weights of the matching units at the paper's d, the same at every run."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.scales import DV
from m3el_fast.ops import CrossModalWeights, DualWeights, LayerNormWeights


def _normal(device: str, *shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _norm(device: str, seed: int) -> LayerNormWeights:
    return LayerNormWeights(1 + 0.1 * _normal(device, DV, seed=seed), 0.1 * _normal(device, DV, seed=seed + 1))


def _linear(device: str, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    weight = _normal(device, rows, DV, seed=seed) / math.sqrt(DV)
    return weight, 0.1 * _normal(device, rows, seed=seed + 1)


def cross_weights(device: str, fused: bool) -> CrossModalWeights:
    fusion = _linear(device, DV, 27) if fused else (None, None)
    heads = torch.ones(5, device=device)
    return CrossModalWeights(*_linear(device, DV, 21), *_linear(device, 1, 23), _norm(device, 25), heads, 1.0, *fusion)


def dual_weights(device: str) -> DualWeights:
    return DualWeights(*_linear(device, DV, 31), *_linear(device, 1, 33), _norm(device, 35), _norm(device, 37))


def double(weights: CrossModalWeights) -> CrossModalWeights:
    norm = LayerNormWeights(weights.norm.weight.double(), weights.norm.bias.double(), weights.norm.eps)
    tensors = {name: t.double() for name, t in weights._asdict().items() if isinstance(t, Tensor)}
    return weights._replace(**tensors, norm=norm)
