"""The matching units of M3EL and MIMIC (spec sections 3 and 4): modules that hold weights and call ops.

Each unit splits into what one side alone determines (``entity``, ``mention``, contexts: dicts of tensors, one row per
item) and ``score`` and ``pairs``, which couple the two sides. ``coarse`` is what of their scores is an inner product of
one side's vectors with the other's, ``g2l`` the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from m3el_fast import ops
from m3el_fast.config import M3ELConfig
from m3el_fast.features import FeatureDims, Vectors
from m3el_fast.ops import CrossModalWeights, DualWeights, G2LOperands, LayerNormWeights, Precision


def norm_weights(norm: nn.LayerNorm) -> LayerNormWeights:
    return LayerNormWeights(norm.weight, norm.bias, norm.eps)


class IntraModal(nn.Module):
    """IMN of one modality (spec section 3.1); MIMIC's TGLU is the same unit on text."""

    def __init__(
        self, global_dim: int, local_dim: int, d: int, pooling: Literal["mean", "max", "soft"] = "mean"
    ) -> None:
        super().__init__()
        self.query = nn.Linear(local_dim, d)
        self.key = nn.Linear(local_dim, d)
        self.value = nn.Linear(local_dim, d)
        self.gate = nn.Linear(global_dim, d)
        self.norm = nn.LayerNorm(d)
        self.pooling = pooling

    def entity(self, glob: Tensor, local: Tensor, mask: Tensor | None = None) -> Vectors:
        side = {"global": glob, "query": self.query(local), "gate": self.gate(glob)}
        return side if mask is None else side | {"mask": mask}

    def mention(self, glob: Tensor, local: Tensor, mask: Tensor | None = None) -> Vectors:
        side = {"global": glob, "key": self.key(local), "value": self.value(local)}
        return side if mask is None else side | {"mask": mask}

    def score(
        self,
        mention: Mapping[str, Tensor],
        entity: Mapping[str, Tensor],
        rows: Tensor | None = None,
        precision: Precision = "fp32",
    ) -> Tensor:
        """Scores [M, E] of all mentions and the entities ``rows`` [E] int64 (None = all), by :func:`ops.g2l_scores`.

        ``precision`` counts with mean pooling only; the other poolings are in fp32.
        """
        g2l = ops.g2l_scores(
            entity["query"],
            mention["key"],
            mention["value"],
            entity["gate"],
            norm_weights(self.norm),
            pooling=self.pooling,
            query_mask=entity.get("mask"),
            key_mask=mention.get("mask"),
            rows=rows,
            precision=self._precision(precision),
        )
        glob = entity["global"] if rows is None else entity["global"][rows]
        return (ops.inner_scores(mention["global"], glob) + g2l) / 2

    def pairs(
        self,
        mention: Mapping[str, Tensor],
        entity: Mapping[str, Tensor],
        mention_rows: Tensor,
        entity_rows: Tensor,
        precision: Precision = "fp32",
    ) -> Tensor:
        """Scores [P] of the pairs (mention_rows[i], entity_rows[i]), [P] int64, by :func:`ops.g2l_pairs`."""
        g2l = ops.g2l_pairs(
            entity["query"],
            mention["key"],
            mention["value"],
            entity["gate"],
            norm_weights(self.norm),
            mention_rows,
            entity_rows,
            pooling=self.pooling,
            query_mask=entity.get("mask"),
            key_mask=mention.get("mask"),
            precision=self._precision(precision),
        )
        return (ops.inner_pairs(mention["global"], entity["global"], mention_rows, entity_rows) + g2l) / 2

    def coarse(self, mention: Mapping[str, Tensor]) -> Vectors:
        """Vectors of the mentions whose inner products with the entities' of these names are part of the score."""
        return {"global": mention["global"] / 2}

    def g2l(
        self, mention: Mapping[str, Tensor], entity: Mapping[str, Tensor], weight: float, row: Tensor | None = None
    ) -> G2LOperands | None:
        """The rest of the score times ``weight``, for :func:`ops.rerank_topk`; None where that lacks this form.

        Args:
            row: [E] int64, the row in ``entity`` of each entity; None = row i belongs to entity i.
        """
        if self.pooling != "mean" or "mask" in mention:
            return None
        norm = norm_weights(self.norm)
        return G2LOperands(entity["query"], entity["gate"], mention["key"], mention["value"], norm, weight / 2, row)

    def _precision(self, wanted: Precision) -> Precision:
        return wanted if self.pooling == "mean" else "fp32"


class CrossModal(nn.Module):
    """CMN (spec section 3.2): contexts ``t2v`` and ``v2t`` of one side, each [n, d]."""

    def __init__(self, dims: FeatureDims, config: M3ELConfig) -> None:
        super().__init__()
        d = config.d
        self.t2v = config.directions != "v2t"
        self.v2t = config.directions != "t2v" and config.cross_form == "bidirectional"
        # one layer serves both where the widths agree, as in CLIP ViT-B/32
        one_width = dims.text_local == dims.text_global
        self.text = nn.Linear(dims.text_global, d) if self.t2v or one_width else None
        self.text_local = nn.Linear(dims.text_local, d) if self.v2t and not one_width else None
        self.image = nn.Linear(dims.image_global, d)
        self.u = nn.Linear(d, d)
        self.gate = nn.Linear(d, 1)
        self.norm = nn.LayerNorm(d)
        self.fusion = nn.Linear(d, d) if config.cross_form == "t2v" else None
        self.head_weight: Tensor
        self.register_buffer("head_weight", torch.ones(config.heads))
        self.lam = config.lam

    def weights(self) -> CrossModalWeights:
        return CrossModalWeights(
            self.u.weight,
            self.u.bias,
            self.gate.weight,
            self.gate.bias,
            norm_weights(self.norm),
            self.head_weight,
            self.lam,
            None if self.fusion is None else self.fusion.weight,
            None if self.fusion is None else self.fusion.bias,
        )

    def image_context(self, glob: Tensor, local: Tensor) -> Vectors:
        """What the contexts need of u images: ``local`` [u, Lv, d] for T2V, ``global`` [u, d] for V2T."""
        context: Vectors = {}
        if self.t2v:
            context["local"] = self.image(local)
        if self.v2t:
            context["global"] = self.image(glob)
        return context

    def text_context(self, glob: Tensor, local: Tensor) -> Vectors:
        """What the contexts need of n texts: ``global`` [n, d] for T2V, ``local`` [n, Lt, d] for V2T."""
        context: Vectors = {}
        if self.t2v:
            assert self.text is not None
            context["global"] = self.text(glob)
        if self.v2t:
            text = self.text_local or self.text
            assert text is not None
            context["local"] = text(local)
        return context

    def contexts(self, text: Mapping[str, Tensor], image: Mapping[str, Tensor]) -> Vectors:
        """``t2v`` and ``v2t`` of n items from what the two methods above give, one row per item in each."""
        weights, side = self.weights(), {}
        if self.t2v:
            side["t2v"] = ops.cross_modal_context(text["global"], image["local"], weights)
        if self.v2t:
            side["v2t"] = ops.cross_modal_context(image["global"], text["local"], weights)
        return side


class DualUnit(nn.Module):
    """DUAL, one direction of MIMIC's VDLU (spec section 4)."""

    def __init__(self, global_dim: int, local_dim: int, d: int) -> None:
        super().__init__()
        self.cls = nn.Linear(global_dim, d)
        self.tokens = nn.Linear(local_dim, d)
        self.fc = nn.Linear(d, d)
        self.gate = nn.Linear(d, 1)
        self.norm1 = nn.LayerNorm(d)
        self.norm2 = nn.LayerNorm(d)

    def source(self, glob: Tensor) -> Tensor:
        return ops.dual_source(self.cls(glob), self.weights())

    def target(self, glob: Tensor, local: Tensor) -> Tensor:
        # the mean of projected rows is the projection of their mean
        return ops.dual_target(self.cls(glob), self.tokens(local.mean(dim=1)), self.weights())

    def weights(self) -> DualWeights:
        return DualWeights(
            self.fc.weight,
            self.fc.bias,
            self.gate.weight,
            self.gate.bias,
            norm_weights(self.norm1),
            norm_weights(self.norm2),
        )

    def score(self, source: Tensor, target: Tensor) -> Tensor:
        return ops.dual_scores(source, target, ops.dual_constants(self.weights()))

    def pairs(self, source: Tensor, target: Tensor, source_rows: Tensor, target_rows: Tensor) -> Tensor:
        return ops.dual_pairs(source, target, ops.dual_constants(self.weights()), source_rows, target_rows)


class DualGated(nn.Module):
    """VDLU (spec section 4): mean of both directions, each with its own weights."""

    def __init__(self, global_dim: int, local_dim: int, d: int) -> None:
        super().__init__()
        self.entity_to_mention = DualUnit(global_dim, local_dim, d)
        self.mention_to_entity = DualUnit(global_dim, local_dim, d)

    def entity(self, glob: Tensor, local: Tensor) -> Vectors:
        return {
            "source": self.entity_to_mention.source(glob),
            "target": self.mention_to_entity.target(glob, local),
        }

    def mention(self, glob: Tensor, local: Tensor) -> Vectors:
        return {
            "source": self.mention_to_entity.source(glob),
            "target": self.entity_to_mention.target(glob, local),
        }

    def score(
        self,
        mention: Mapping[str, Tensor],
        entity: Mapping[str, Tensor],
        rows: Tensor | None = None,
        precision: Precision = "fp32",
    ) -> Tensor:
        """As :meth:`IntraModal.score`; inner products of a few vectors, in fp32 whatever the ``precision``."""
        source, target = (entity[k] if rows is None else entity[k][rows] for k in ("source", "target"))
        forth = self.entity_to_mention.score(source, mention["target"]).T
        back = self.mention_to_entity.score(mention["source"], target)
        return (forth + back) / 2

    def pairs(
        self,
        mention: Mapping[str, Tensor],
        entity: Mapping[str, Tensor],
        mention_rows: Tensor,
        entity_rows: Tensor,
        precision: Precision = "fp32",
    ) -> Tensor:
        """As :meth:`IntraModal.pairs`; in fp32 whatever the ``precision``."""
        forth = self.entity_to_mention.pairs(entity["source"], mention["target"], entity_rows, mention_rows)
        back = self.mention_to_entity.pairs(mention["source"], entity["target"], mention_rows, entity_rows)
        return (forth + back) / 2

    def coarse(self, mention: Mapping[str, Tensor]) -> Vectors:
        """As :meth:`IntraModal.coarse`: nothing."""
        return {}

    def g2l(
        self, mention: Mapping[str, Tensor], entity: Mapping[str, Tensor], weight: float, row: Tensor | None = None
    ) -> G2LOperands | None:
        """As :meth:`IntraModal.g2l`: there is none."""
        return None


class GatedFusion(nn.Module):
    """CMFU (spec section 4): one context vector ``t2v`` [n, d] per side."""

    def __init__(self, dims: FeatureDims, d: int) -> None:
        super().__init__()
        self.text = nn.Linear(dims.text_global, d)
        self.image = nn.Linear(dims.image_local, d)
        self.gate = nn.Linear(d, 1)
        self.norm = nn.LayerNorm(d)

    def image_context(self, glob: Tensor, local: Tensor) -> Vectors:
        """What the context needs of u images: ``local`` [u, Lv, d]."""
        return {"local": self.image(local)}

    def text_context(self, glob: Tensor, local: Tensor) -> Vectors:
        """What the context needs of n texts: ``global`` [n, d]."""
        return {"global": self.text(glob)}

    def contexts(self, text: Mapping[str, Tensor], image: Mapping[str, Tensor]) -> Vectors:
        """``t2v`` of n items from what the two methods above give, one row per item in each."""
        t, patches = text["global"], image["local"]
        attention = (patches @ t[:, :, None]).softmax(dim=1)
        context = (attention.transpose(1, 2) @ patches)[:, 0]
        return {"t2v": self.norm(t * self.gate(t).tanh() + context)}
