"""What only a forward pass tells of arbitrary towers: their widths, and which parameters take part."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from m3el_fast.encoder.towers import Towers
from m3el_fast.errors import InputError


def probe(towers: Towers, input_ids: Tensor, attention_mask: Tensor, image_size: int) -> tuple[int, int, int, int]:
    """Widths of text global and local, image global and local; freezes parameters that reach none of them.

    Data-parallel training fails on parameters without a gradient, and weight decay would shrink them: BLIP's unused
    cross attention and mask tokens are among them.

    Args:
        towers: in evaluation mode.
        input_ids, attention_mask: [1, Lt] int64.
        image_size: side of the image.

    Raises:
        InputError: a tower whose last hidden states are not [n, tokens, width] (a convolutional one).
    """
    like = next(towers.parameters())
    with torch.enable_grad():
        outputs = {
            "text": towers.text(input_ids.to(like.device), attention_mask.to(like.device)),
            "vision": towers.image(like.new_zeros(1, 3, image_size, image_size)),
        }
    for name, (pooled, hidden) in outputs.items():
        if pooled.dim() != 2 or hidden.dim() != 3:
            expected = "last hidden states [n, tokens, width] and one pooled vector each (a transformer)"
            got = f"{list(hidden.shape)} and {list(pooled.shape)} from {_kind(towers, name)}"
            raise InputError(f"encoder, {name} tower", expected, got)
    tensors = [tensor for pair in outputs.values() for tensor in pair]
    used = _leaves(tensors)
    for parameter in towers.parameters():
        parameter.requires_grad_(id(parameter) in used)
    text_global, text_local, image_global, image_local = (tensor.shape[-1] for tensor in tensors)
    return text_global, text_local, image_global, image_local


def _kind(towers: Towers, name: str) -> str:
    tower: nn.Module = towers.text_model if name == "text" else towers.vision_model
    return type(tower).__name__


def _leaves(tensors: Iterable[Tensor]) -> set[int]:
    """Identities of the leaves of the autograd graphs behind ``tensors``."""
    nodes = [tensor.grad_fn for tensor in tensors]
    seen, leaves = set(nodes), set()
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        following = {parent for parent, _ in node.next_functions} - seen
        seen |= following
        nodes.extend(following)
    return leaves
