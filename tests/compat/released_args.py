"""Configurations as the released code's, and features of random items in its encoder's order."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

SMALL = {"input_hidden_dim": 32, "input_image_hidden_dim": 64, "hidden_dim": 12, "dv": 16, "dt": 32}
PAPER = {"input_hidden_dim": 512, "input_image_hidden_dim": 768, "hidden_dim": 96, "dv": 96, "dt": 512}


def m3el_args(sizes: dict[str, int] = SMALL, **other: Any) -> Namespace:
    """Those of the first release."""
    model = dict(sizes, head_num=5, weight=1.0, loss_temperature=0.03, inter_weight=1.0, intra_weight=0.8)
    model |= {f"{unit}_hidden_dim": sizes["hidden_dim"] for unit in ("TIMM", "IIMM", "CMM")}
    return Namespace(model=Namespace(**(model | other)))


def mimic_args(sizes: dict[str, int] = SMALL, **other: Any) -> Namespace:
    model = sizes | {f"{unit}_hidden_dim": sizes["hidden_dim"] for unit in ("TGLU", "IDLU", "CMFU")}
    return Namespace(model=Namespace(**(model | other)))


def encoded(count: int, seed: int, tokens: int = 5) -> list[Tensor]:
    """Four tensors of ``count`` items at the small sizes, as the released encoder returns them."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(count, 32), (count, 16), (count, tokens, 32), (count, tokens + 1, 16)]
    return [torch.randn(shape, generator=g) for shape in shapes]


def forward_order(entities: list[Tensor], mentions: list[Tensor]) -> list[Tensor]:
    """The matcher's positional arguments."""
    (et, ei, etl, eil), (mt, mi, mtl, mil) = entities, mentions
    return [et, etl, mt, mtl, ei, eil, mi, mil]
