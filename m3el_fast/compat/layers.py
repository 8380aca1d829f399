"""The released matchers' layers, under their names and in the order in which the released code makes them, and our
matchers on top of these layers (spec section 10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from m3el_fast.compat.losses import MCLETLoss
from m3el_fast.config import M3ELConfig
from m3el_fast.features import FeatureDims
from m3el_fast.matching import Matcher
from m3el_fast.ops import CrossModalWeights
from m3el_fast.units import CrossModal

_M = TypeVar("_M", bound=Matcher)


class HeadWeights(nn.Module):
    """One weight for each pooling head, frozen at 1 as in the released code."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, 1), requires_grad=False)


def intra_modal(width: int, d: int) -> nn.ModuleDict:
    """``timm``, ``iimm`` of M3EL and ``tglu`` of MIMIC."""
    linear = {name: nn.Linear(width, d) for name in ("fc_query", "fc_key", "fc_value", "fc_cls")}
    return nn.ModuleDict(linear | {"layer_norm": nn.LayerNorm(d)})


def cross_modal(dt: int, dv: int, d: int, heads: int) -> nn.ModuleDict:
    """What ``cmm`` and ``cmmb`` of M3EL share."""
    return nn.ModuleDict(
        {
            "text_fc": nn.Linear(dt, d),
            "image_fc": nn.Linear(dv, d),
            "gate_fc": nn.Linear(d, 1),
            "gate_layer_norm": nn.LayerNorm(d),
            "match_module": nn.ModuleDict({"trans_linear": nn.Linear(d, d)}),
            "multi_head_module": HeadWeights(heads),
        }
    )


def cmm(dt: int, dv: int, d: int, heads: int, temperature: float) -> nn.ModuleDict:
    """The T2V-only form's; its MCLET head is never used."""
    layers = cross_modal(dt, dv, d, heads)
    layers["fusion_module"] = nn.ModuleDict({"linear": nn.Linear(d, d)})
    layers["mclet_text_loss"] = MCLETLoss(d, temperature)
    return layers


def cmmb(dt: int, dv: int, d: int, heads: int, temperature: float, text: int, image: int) -> nn.ModuleDict:
    """The bidirectional form's; its MCLET heads, of widths ``text`` and ``image``, are never used."""
    layers = cross_modal(dt, dv, d, heads)
    layers["mclet_text_loss"] = MCLETLoss(text, temperature)
    layers["mclet_image_loss"] = MCLETLoss(image, temperature)
    return layers


def dual(dv: int, d: int) -> nn.ModuleDict:
    """``vdlu.dual_ent2men`` and ``vdlu.dual_men2ent`` of MIMIC."""
    return nn.ModuleDict(
        {
            "cls_fc": nn.Linear(dv, d),
            "tokens_fc": nn.Linear(dv, d),
            "fc": nn.Linear(d, d),
            "gate_fc": nn.Linear(d, 1),
            "add_layer_norm": nn.LayerNorm(d),
            "layer_norm": nn.LayerNorm(d),
        }
    )


def cmfu(dt: int, dv: int, d: int) -> nn.ModuleDict:
    """``cmfu`` of MIMIC; ``context_layer_norm`` is never used."""
    return nn.ModuleDict(
        {
            "text_fc": nn.Linear(dt, d),
            "image_fc": nn.Linear(dv, d),
            "gate_fc": nn.Linear(d, 1),
            "gate_layer_norm": nn.LayerNorm(d),
            "context_layer_norm": nn.LayerNorm(d),
        }
    )


class CrossModalOnHeads(CrossModal):
    """CMN whose head weights are those of a layer, ``heads``, [K, 1]."""

    heads: HeadWeights

    def __init__(self, dims: FeatureDims, config: M3ELConfig) -> None:
        super().__init__(dims, config)
        self.register_buffer("head_weight", None)

    def weights(self) -> CrossModalWeights:
        weight: Tensor = self.heads.weight[:, 0]
        return super().weights()._replace(head_weight=weight)


def on_layers(ours: _M, released: nn.Module, names: Mapping[str, str]) -> _M:
    """``ours`` with layers of ``released`` in place of its own: each weight is there once, under two names.

    Args:
        names: released name -> our name of every weight of ``ours``.
    """
    for theirs, mine in names.items():
        layer = released.get_submodule(theirs.rpartition(".")[0])
        ours.set_submodule("cross.heads" if mine == "cross.head_weight" else mine.rpartition(".")[0], layer)
    return ours
