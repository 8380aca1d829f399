"""The joint training loss (spec sections 2, 3.3 and 4): contrastive loss plus cross entropies of the scores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from m3el_fast import ops
from m3el_fast.config import M3ELConfig, MIMICConfig
from m3el_fast.features import FeatureDims, Scores


class MCLETHead(nn.Module):
    """The projection in front of the MCLET loss, shared by both sides: normalize(Linear(ELU(Linear(x))))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(x), dim=-1)


class ContrastiveLoss(nn.Module):
    """L_cl: the configured loss on global features, averaged over text and images (spec section 2)."""

    def __init__(self, config: M3ELConfig, dims: FeatureDims) -> None:
        super().__init__()
        self.config = config
        heads = config.contrastive == "mclet"
        self.text_head = MCLETHead(dims.text_global) if heads else None
        self.image_head = MCLETHead(dims.image_global) if heads else None

    def forward(
        self,
        entity: tuple[Tensor, Tensor],
        mention: tuple[Tensor, Tensor],
        gold: Tensor | None = None,
        anchors: range | None = None,
    ) -> Tensor:
        """Scalar loss of (text_global [B, dt], image_global [B, dv]) of entities and mentions.

        Args:
            gold: [B] int64, the entities, of which equal ones are not each other's negatives.
            anchors: the rows whose losses count; None = all.
        """
        text = self._one(entity[0], mention[0], self.text_head, gold, anchors)
        image = self._one(entity[1], mention[1], self.image_head, gold, anchors)
        return (text + image) / 2

    def _one(
        self, entity: Tensor, mention: Tensor, head: MCLETHead | None, gold: Tensor | None, anchors: range | None
    ) -> Tensor:
        c = self.config
        if head is not None:
            return ops.mclet_loss(head(entity), head(mention), tau=c.mclet_tau, duplicates=gold, anchors=anchors)
        if c.contrastive == "infonce":
            return ops.infonce_loss(entity, mention, duplicates=gold, anchors=anchors)
        return ops.icl_loss(
            entity,
            mention,
            tau=c.tau,
            beta=c.beta,
            gamma=c.gamma,
            variant=c.icl_variant,
            duplicates=gold,
            anchors=anchors,
        )


def matching_losses(
    scores: Scores, config: M3ELConfig | MIMICConfig, duplicates: Tensor | None = None, first: int = 0
) -> dict[str, Tensor]:
    """Cross entropy of each score that the configuration trains, by name (spec section 3.3).

    Args:
        scores: [b, B] of b mentions against all entities of the batch; the gold of row i is column ``first + i``.
        duplicates: [b, B] bool, columns to leave out; the gold itself stays.
    """
    if isinstance(config, MIMICConfig):
        trained = {"union": True, "text": True, "image": True, "cross": True}
    else:
        apart = config.union == "released"
        trained = {
            "union": config.union_loss,
            "text": config.text and config.text_loss,
            "image": config.image and config.image_loss,
            "cross": config.cross and config.cross_loss and not apart,
            "t2v": config.cross and config.cross_loss and apart,
            "v2t": config.cross and config.cross_loss and apart,
        }
    losses = {}
    for name, on in trained.items():
        score = getattr(scores, name)
        if on and score is not None:
            losses[name] = ops.diagonal_cross_entropy(score, duplicates, first)
    return losses
