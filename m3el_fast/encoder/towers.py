"""The text and the vision tower of one Hugging Face model, or of two, behind one interface (spec section 1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipForImageTextRetrieval, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from m3el_fast.encoder.pooling import Pooling
from m3el_fast.encoder.text import starts_with_cls
from m3el_fast.errors import InputError

_SIGLIP2_VISION = "siglip2_vision_model"
_SIGLIP_TEXT = ("siglip_text_model", "siglip2_text_model")


class Towers(nn.Module):
    """Both towers and the model's own projections, under the names that Hugging Face's ``CLIPModel`` gives them.

    ``state_dict`` names, whatever the architecture: ``text_model.*``, ``text_projection.*``, ``vision_model.*``,
    ``visual_projection.*``, and a whole model's own scalars (``logit_scale``), unused, so that a CLIP's names are all
    there. Heads and decoders are left behind.

    Attributes:
        pools_at_end: whether the text tower is CLIP's, which pools at the first end-of-text token.
        end_id: the tokenizer's end-of-text token, None where it has none.
    """

    def __init__(self, text: PreTrainedModel, vision: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.text_model = _tower(text, ("text_encoder", "text_model"))
        self.text_projection = _child(text, ("text_projection", "text_proj"))
        self.vision_model = _tower(vision, ("vision_model",))
        self.visual_projection = _child(vision, ("visual_projection", "vision_proj"))
        if text is vision:
            for name, parameter in text.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
        self._text_config: PreTrainedConfig = self.text_model.config
        self._vision_config: PreTrainedConfig = self.vision_model.config
        self.pools_at_end = self._text_config.model_type == "clip_text_model"
        self.end_id: int | None = tokenizer.eos_token_id
        self._text_pooling = Pooling(
            normalises=_normalises(text, self.text_projection),
            end_id=self.end_id if self.pools_at_end else None,
            ignores_pooler=isinstance(text, BlipForImageTextRetrieval),
            has_cls=starts_with_cls(tokenizer),
        )
        self._vision_pooling = Pooling(
            normalises=_normalises(vision, self.visual_projection),
            end_id=None,
            ignores_pooler=isinstance(vision, BlipForImageTextRetrieval),
            has_cls=any(
                name.endswith(("cls_token", "class_embedding")) for name, _ in self.vision_model.named_parameters()
            ),
        )
        self._pad_id = int(tokenizer.pad_token_id)

    def image_size(self) -> int:
        """Side of the square images that the vision tower reads.

        Raises:
            InputError: it reads none of one fixed, square size.
        """
        config = self._vision_config
        if config.model_type == _SIGLIP2_VISION:
            return int(config.patch_size * math.isqrt(config.num_patches))
        size = getattr(config, "image_size", None)
        sides = {size} if isinstance(size, int) else set(size or ())
        if len(sides) != 1:
            raise InputError(f"encoder, vision tower ({config.model_type})", "one image size, square", size)
        return int(sides.pop())

    def vocabulary_size(self) -> int:
        """Number of token ids that the text tower knows."""
        return int(self._text_config.vocab_size)

    def text_limit(self) -> int | None:
        """The most tokens that the text tower has positions for; None = no limit."""
        limit: int | None = getattr(self._text_config, "max_position_embeddings", None)
        for name, module in self.text_model.named_modules():
            if limit and isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
                # RoBERTa counts positions from the padding id + 1
                limit -= 0 if module.padding_idx is None else module.padding_idx + 1
        return limit

    def text(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """[n, Lt] int64 ids and mask -> pooled [n, own dt] and last hidden states [n, Lt, text width]."""
        config = self._text_config
        length = input_ids.shape[1]
        if config.model_type in _SIGLIP_TEXT:
            # SigLIP was trained without a mask on texts padded to its full length, and pools the last position, padding
            # or not: a mask or another length would give embeddings that it never learnt.
            input_ids = F.pad(input_ids, (0, config.max_position_embeddings - length), value=self._pad_id)
            output = self.text_model(input_ids=input_ids)
        else:
            output = self.text_model(input_ids=input_ids, attention_mask=attention_mask)
        pooled = self._text_pooling(output, self.text_projection, input_ids, attention_mask)
        return pooled, output.last_hidden_state[:, :length]

    def image(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """[u, 3, S, S] normalised pixels -> pooled [u, own width] and last hidden states [u, Lv, vision width]."""
        config = self._vision_config
        if config.model_type == _SIGLIP2_VISION:
            output = self.vision_model(*_patches(pixel_values, config.patch_size))
        else:
            output = self.vision_model(pixel_values=pixel_values)
        return self._vision_pooling(output, self.visual_projection), output.last_hidden_state


def _tower(model: PreTrainedModel, names: tuple[str, ...]) -> Any:
    """The tower of that name, or the whole of a model that has one modality only."""
    tower = _child(model, names) or model
    # A CLIP or SigLIP tower that stood alone held its layers one level deeper in early transformers 5: unwrapped, its
    # names in our checkpoints are the same in all versions.
    return _child(tower, names) or tower


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((child for name, child in module.named_children() if name in names), None)


def _normalises(model: PreTrainedModel, projection: nn.Module | None) -> bool:
    """Whether the model compares its two embeddings by cosine; SigLIP projects inside its towers."""
    return projection is not None or model.config.model_type.startswith("siglip")


def _patches(pixel_values: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """SigLIP 2's input: patches [u, P, size * size * 3], their mask [u, P], and rows and columns of patches [u, 2]."""
    patches = pixel_values.unfold(2, size, size).unfold(3, size, size)  # [u, 3, rows, columns, size, size]
    count, _, rows, columns = patches.shape[:4]
    patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(count, rows * columns, -1)
    mask = torch.ones(patches.shape[:2], dtype=torch.int64, device=patches.device)
    return patches, mask, torch.tensor([[rows, columns]] * count, device=patches.device)
