"""A small CLIP with random weights."""

from __future__ import annotations

from torch import nn
from transformers import CLIPConfig, PreTrainedModel, PreTrainedTokenizerBase

from m3el_fast.config import ScratchCLIP
from m3el_fast.errors import InputError


def scratch_config(sizes: ScratchCLIP, tokenizer: PreTrainedTokenizerBase, max_text_tokens: int) -> CLIPConfig:
    """CLIP's architecture (quick_gelu, MLPs of four times the width) at the given sizes for the given tokenizer.

    Raises:
        InputError: sizes that do not divide.
    """
    for whole, part in (
        ("text_width", "text_heads"),
        ("vision_width", "vision_heads"),
        ("image_size", "patch_size"),
    ):
        if getattr(sizes, whole) % getattr(sizes, part):
            expected = f"a multiple of {part} ({getattr(sizes, part)})"
            raise InputError(f"encoder.scratch.{whole}", expected, getattr(sizes, whole))
    return CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": sizes.text_width,
            "intermediate_size": 4 * sizes.text_width,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.text_heads,
            "max_position_embeddings": max_text_tokens,
            "projection_dim": sizes.projection_dim,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": sizes.vision_width,
            "intermediate_size": 4 * sizes.vision_width,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": sizes.vision_heads,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch_size,
            "projection_dim": sizes.projection_dim,
        },
        projection_dim=sizes.projection_dim,
    )


def spread_tokens(model: PreTrainedModel) -> None:
    """Draw the token embeddings of a new CLIP wide apart.

    CLIP's own standard deviation of 0.02 suits training pairs by the hundred million. With thousands, most words are
    never trained; the position embeddings, trained on every text, would soon drown them.
    """
    nn.init.normal_(model.get_parameter("text_model.embeddings.token_embedding.weight"), std=0.5)
