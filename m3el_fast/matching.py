"""The matchers of M3EL and MIMIC (spec sections 3 and 4): what each side determines alone, and scores of two sides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from m3el_fast import ops
from m3el_fast.config import M3ELConfig, MIMICConfig
from m3el_fast.features import FeatureDims, Features, Scores, Vectors
from m3el_fast.ops import G2LOperands
from m3el_fast.units import CrossModal, DualGated, GatedFusion, IntraModal

Role = Literal["entity", "mention"]


@dataclass(frozen=True)
class Side:
    """All that scoring needs of n mentions or n entities.

    Attributes:
        item: tensors [n, ...]: the text unit's (``text.*``) and the cross-modal contexts (``cross.*``).
        visual: tensors [u, ...]: the image unit's, one row per distinct image.
        image_index: [n] int64, the row of ``visual`` of each item; None = row i belongs to item i.
    """

    item: Vectors
    visual: Vectors
    image_index: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> Side:
        """The same with ``function`` applied to each tensor of ``item`` and, one row per item, of ``visual``."""
        visual = self.visual
        if self.image_index is not None:
            visual = {name: tensor[self.image_index] for name, tensor in visual.items()}
        return Side(
            {name: function(tensor) for name, tensor in self.item.items()},
            {name: function(tensor) for name, tensor in visual.items()},
            None,
        )

    def take(self, rows: Tensor | slice) -> Side:
        """The items ``rows``, with the images that they use."""
        item = {name: tensor[rows] for name, tensor in self.item.items()}
        if self.image_index is None:
            return Side(item, {name: tensor[rows] for name, tensor in self.visual.items()}, None)
        used, index = self.image_index[rows].unique(return_inverse=True)
        return Side(item, {name: tensor[used] for name, tensor in self.visual.items()}, index)


class Matcher(nn.Module):
    """What both models share: four LayerNorms, a text unit, an image unit, cross-modal contexts, their union."""

    text: IntraModal | None
    image: IntraModal | DualGated | None
    cross: CrossModal | GatedFusion | None
    directions_count_apart: bool  # T2V and V2T are two members of the union, not one

    def __init__(self, dims: FeatureDims, token_mask: bool) -> None:
        super().__init__()
        self.token_mask = token_mask
        self.text_global_norm = nn.LayerNorm(dims.text_global)
        self.text_local_norm = nn.LayerNorm(dims.text_local)
        self.image_global_norm = nn.LayerNorm(dims.image_global)
        self.image_local_norm = nn.LayerNorm(dims.image_local)

    def entity_side(self, features: Features) -> Side:
        """All that scores need of the entities; independent of the mentions, so computed once per KB."""
        return self._side(features, "entity")

    def mention_side(self, features: Features) -> Side:
        """All that scores need of the mentions; independent of the entities."""
        return self._side(features, "mention")

    def image_part(self, glob: Tensor, local: Tensor, role: Role) -> tuple[Vectors, Vectors]:
        """What u images determine without a text.

        Args:
            glob: [u, dv]; local: [u, Lv, dv]: the image features of :class:`Features`.

        Returns:
            ``visual`` of :class:`Side`, and what :meth:`cross_part` needs of these images; [u, ...] each.
        """
        glob, local = self.image_global_norm(glob), self.image_local_norm(local)
        visual: Vectors = {}
        if self.image is not None:
            visual = (self.image.entity if role == "entity" else self.image.mention)(glob, local)
        return visual, {} if self.cross is None else self.cross.image_context(glob, local)

    def text_part(self, glob: Tensor, local: Tensor, mask: Tensor | None, role: Role) -> tuple[Vectors, Vectors]:
        """What n texts determine without an image.

        Args:
            glob: [n, dt]; local: [n, Lt, text width]; mask: [n, Lt] bool or None: as in :class:`Features`.

        Returns:
            ``text.*`` of ``item`` of :class:`Side`, and what :meth:`cross_part` needs of these texts; [n, ...] each.
        """
        glob, local = self.text_global_norm(glob), self.text_local_norm(local)
        text: Vectors = {}
        if self.text is not None:
            side = self.text.entity if role == "entity" else self.text.mention
            text = {f"text.{k}": v for k, v in side(glob, local, mask if self.token_mask else None).items()}
        return text, {} if self.cross is None else self.cross.text_context(glob, local)

    def cross_part(self, text: Mapping[str, Tensor], image: Mapping[str, Tensor]) -> Vectors:
        """The ``cross.*`` of ``item`` of :class:`Side` for n items.

        Args:
            text: from :meth:`text_part`; image: from :meth:`image_part`; one row per item in both.
        """
        if self.cross is None:
            return {}
        return {f"cross.{k}": v for k, v in self.cross.contexts(text, image).items()}

    def _side(self, features: Features, role: Role) -> Side:
        visual, image = self.image_part(features.image_global, features.image_local, role)
        item, text = self.text_part(features.text_global, features.text_local, features.text_mask, role)
        index = features.image_index
        if index is not None:
            image = {name: tensor[index] for name, tensor in image.items()}
        return Side(item | self.cross_part(text, image), visual, index)

    def score(self, mentions: Side, entities: Side) -> Scores:
        """Scores [M, E] of all pairs of the two sides."""
        parts: Vectors = {}
        if self.text is not None:
            parts["text"] = self.text.score(unit(mentions.item, "text"), unit(entities.item, "text"))
        if self.image is not None:
            image = self.image.score(mentions.visual, entities.visual)
            if mentions.image_index is not None:
                image = image[mentions.image_index]
            parts["image"] = image if entities.image_index is None else image[:, entities.image_index]
        left, right = unit(mentions.item, "cross"), unit(entities.item, "cross")
        parts |= {name: ops.inner_scores(left[name], right[name]) for name in left}
        return self.combine(parts)

    def combine(self, parts: Mapping[str, Tensor]) -> Scores:
        """All scores from those parts that the model's form has of ``text``, ``image``, ``t2v`` and ``v2t``.

        Args:
            parts: tensors of one shape: [M, E] for all pairs of two sides, [P] for a list of pairs.
        """
        text, image, t2v, v2t = (parts.get(name) for name in ("text", "image", "t2v", "v2t"))
        directions = [score for score in (t2v, v2t) if score is not None]
        cross = _mean(directions) if directions else None
        members = [text, image, t2v, v2t] if self.directions_count_apart else [text, image, cross]
        union = _mean([score for score in members if score is not None])
        return Scores(union, text, image, cross, t2v, v2t)

    def coarse(self, mentions: Side) -> Side:
        """Vectors of the mentions whose inner products with the entities' of the same names add up to every term of
        the union score that is one (spec section 5.1): all but G2L and MIMIC's VDLU."""
        cross = unit(mentions.item, "cross")
        weights = self._weights(cross)
        item = {f"cross.{name}": weights[name] * vector for name, vector in cross.items()}
        visual: Vectors = {}
        if self.text is not None:
            text = self.text.coarse(unit(mentions.item, "text"))
            item |= {f"text.{name}": weights["text"] * vector for name, vector in text.items()}
        if self.image is not None:
            image = self.image.coarse(mentions.visual)
            visual = {name: weights["image"] * vector for name, vector in image.items()}
        return Side(item, visual, mentions.image_index)

    def g2l(self, mentions: Side, entities: Side) -> list[G2LOperands] | None:
        """The rest of the union score, for :func:`ops.rerank_topk`; None where that lacks a unit of this form. Both
        sides have an ``image_index``."""
        weights = self._weights(unit(mentions.item, "cross"))
        parts = []
        if self.text is not None:
            sides = unit(mentions.item, "text"), unit(entities.item, "text")
            parts.append(self.text.g2l(*sides, weights["text"]))
        if self.image is not None:
            own = {name: tensor[mentions.image_index] for name, tensor in mentions.visual.items()}
            parts.append(self.image.g2l(own, entities.visual, weights["image"], entities.image_index))
        served = [part for part in parts if part is not None]
        return served if len(served) == len(parts) else None

    def _weights(self, cross: Collection[str]) -> dict[str, float]:
        """How much of each part goes into the union score, ``cross`` being those of the cross-modal unit."""
        units = (("text", self.text), ("image", self.image))
        names = [*(name for name, unit in units if unit is not None), *cross]
        each = dict(zip(names, torch.eye(len(names)), strict=True))  # the union score is linear in its parts
        return dict(zip(names, self.combine(each).union.tolist(), strict=True))

    def forward(self, entities: Features, mentions: Features) -> Scores:
        """Scores [M, E] of M mentions against E entities (spec sections 3.3 and 4)."""
        return self.score(self.mention_side(mentions), self.entity_side(entities))


class M3ELMatcher(Matcher):
    """M3EL's matcher (spec section 3) with every switch of :class:`M3ELConfig`."""

    def __init__(self, config: M3ELConfig, dims: FeatureDims) -> None:
        super().__init__(dims, config.token_mask)
        d = config.d
        self.text = IntraModal(dims.text_global, dims.text_local, d, config.pooling) if config.text else None
        if not config.image:
            self.image = None
        elif config.intra_modal == "independent":
            self.image = DualGated(dims.image_global, dims.image_local, d)
        else:
            self.image = IntraModal(dims.image_global, dims.image_local, d, config.pooling)
        self.cross = CrossModal(dims, config) if config.cross else None
        self.directions_count_apart = config.union == "released"


class MIMICMatcher(Matcher):
    """MIMIC's matcher (spec section 4): TGLU, VDLU, CMFU."""

    def __init__(self, config: MIMICConfig, dims: FeatureDims) -> None:
        super().__init__(dims, config.token_mask)
        self.text = IntraModal(dims.text_global, dims.text_local, config.d)
        self.image = DualGated(dims.image_global, dims.image_local, config.d)
        self.cross = GatedFusion(dims, config.d)
        self.directions_count_apart = False


def build_matcher(config: M3ELConfig | MIMICConfig, dims: FeatureDims) -> Matcher:
    """The matcher that ``config`` describes, with PyTorch's default initialisation."""
    return M3ELMatcher(config, dims) if isinstance(config, M3ELConfig) else MIMICMatcher(config, dims)


def _mean(scores: list[Tensor]) -> Tensor:
    total = scores[0]
    for score in scores[1:]:
        total = total + score
    return total / len(scores)


def unit(item: Mapping[str, Tensor], name: str) -> Vectors:
    """The tensors of one unit (``text`` or ``cross``) under their names within it."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in item.items() if key.startswith(f"{name}.")}
