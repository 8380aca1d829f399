"""From a tower's output to its embedding: pooling, the model's own projection, normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Pooling:
    """How one tower is pooled: as its model does, else its CLS token, else the mean over its tokens (spec section 1).

    Attributes:
        normalises: whether the model L2-normalises its embedding.
        end_id: CLIP's text tower: pool at the first token with this id. None elsewhere.
        ignores_pooler: whether the model embeds its first token although its tower gives a ``pooler_output``.
        has_cls: whether the first token is a CLS token.
    """

    normalises: bool
    end_id: int | None
    ignores_pooler: bool
    has_cls: bool

    def __call__(
        self, output: Any, projection: nn.Module | None, input_ids: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Embedding [n, width] of a tower's output; a text tower's takes ``input_ids`` and ``mask`` [n, Lt] too."""
        pooled = self._pool(output, input_ids, mask)
        if projection is not None:
            pooled = projection(pooled)
        return F.normalize(pooled, dim=-1) if self.normalises else pooled

    def _pool(self, output: Any, input_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        hidden: Tensor = output.last_hidden_state
        if self.end_id is not None and input_ids is not None:
            # As CLIP pools, but by the tokenizer's id: where the model's configuration says that token 2 ends a text
            # (OpenAI's do, wrongly; a small vocabulary's may, rightly) transformers pools at the largest id instead.
            end = (input_ids == self.end_id).int().argmax(dim=-1)
            return hidden[torch.arange(len(hidden), device=hidden.device), end]
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is not None and not self.ignores_pooler:
            return pooled
        if self.has_cls:
            return hidden[:, 0]
        if mask is None:
            return hidden.mean(dim=1)
        kept = hidden.masked_fill(mask.unsqueeze(-1) == 0, 0)
        return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
