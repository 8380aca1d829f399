"""The released contrastive losses: their constructors, arguments and values, computed by :mod:`m3el_fast.ops`.

They run on any device and keep the features' precision: where the released code moves its masks to the GPU and turns
the loss into fp64 without a word, the loss here is of the features' dtype, fp32 for features in half precision.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3el_fast import ops


class WeightedContrastiveLoss(nn.Module):
    """M3EL's intra-modal contrastive loss, as released (spec section 2, ``variant="released"``).

    Args:
        temperature: tau; inter_weight: gamma, of the other side's logits; intra_weight: beta, of the own side's.
        logger: never used, as in the released code.

    Attributes:
        logit_scale: [] never used; part of the released state dict.
    """

    def __init__(
        self, temperature: float = 0.03, inter_weight: float = 1.0, intra_weight: float = 0.8, logger: Any = None
    ) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones([]))
        self.temperature, self.inter_weight, self.intra_weight = temperature, inter_weight, intra_weight
        self.logger = logger

    def forward(self, entity_features: Tensor, mention_features: Tensor) -> Tensor:
        """Scalar loss of [B, d] features, row i of one belonging to row i of the other.

        Raises:
            ValueError: shapes do not match, or the batch is empty.
        """
        return ops.icl_loss(
            entity_features,
            mention_features,
            tau=self.temperature,
            beta=self.intra_weight,
            gamma=self.inter_weight,
            variant="released",
        )


class InfoNCELoss(nn.Module):
    """Mean of the row and column cross entropies of raw dot products (spec section 2).

    Args:
        T_init: kept as ``tau`` and never applied, as in the released code: its numbers come without a temperature.
        kwargs: never used, as in the released code.
    """

    def __init__(self, T_init: float = 0.07, **kwargs: Any) -> None:
        super().__init__()
        self.tau = T_init

    def forward(self, image_emb: Tensor, text_emb: Tensor) -> Tensor:
        """Scalar loss of [B, d] features. Raises as :class:`WeightedContrastiveLoss`."""
        return ops.infonce_loss(image_emb, text_emb)


class MCLETLoss(nn.Module):
    """The MCLET loss with its projection, one for both sides (spec section 2).

    Args:
        embedding_dim: d; cl_temperature: t.
    """

    def __init__(self, embedding_dim: int, cl_temperature: float = 0.05) -> None:
        super().__init__()
        self.cl_temperature, self.embedding_dim = cl_temperature, embedding_dim
        self.cl_fc = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim), nn.ELU(), nn.Linear(embedding_dim, embedding_dim)
        )

    def forward(self, A_embedding: Tensor, B_embedding: Tensor) -> Tensor:
        """Scalar loss of [B, d] features. Raises as :class:`WeightedContrastiveLoss`."""
        a, b = (F.normalize(self.cl_fc(side), dim=-1) for side in (A_embedding, B_embedding))
        return ops.mclet_loss(a, b, tau=self.cl_temperature)
