"""Towers for inference on the CPU: weights cast and laid out once for oneDNN's matrix products.

A packed tower is the Hugging Face module with its linear layers, MLPs, patch embeddings and attention replaced, so that
every architecture works. Matrix products run in the dtype asked for; the residual stream, LayerNorm and softmax stay
fp32.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from m3el_fast.encoder.towers import Towers

_ATTENTION = "m3el_fast_short"
_SHORT = 128  # tokens up to which whole score matrices beat the blocked kernel
_ROWS = 1024  # of a typical product: a hint for the layout of the weights


class _Epilogue(NamedTuple):
    """An activation that oneDNN applies to a product, as ``f(scale x) / scale``."""

    name: str
    approximate: str
    scale: float


# LayerNorms of which every reader is a packed layer (CLIP, SigLIP and BLIP; ViT)
_PRE_NORMS = ("layer_norm1", "layer_norm2", "layernorm_before", "layernorm_after")
_PLAIN = _Epilogue("none", "", 1)
_EPILOGUES = {
    type(ACT2FN[name]): epilogue
    for name, epilogue in {
        "gelu": _Epilogue("gelu", "none", 1),
        "gelu_pytorch_tanh": _Epilogue("gelu", "tanh", 1),
        "quick_gelu": _Epilogue("swish", "", 1.702),  # x sigmoid(1.702 x)
    }.items()
}


def share(towers: Towers) -> Towers:
    """A copy of ``towers`` in evaluation mode that shares all parameters and buffers."""
    tensors = chain(towers.parameters(), towers.buffers())
    return copy.deepcopy(towers, {id(tensor): tensor for tensor in tensors}).eval()


def pack(towers: Towers, dtype: torch.dtype) -> Towers:
    """A copy of ``towers`` for inference that shares every parameter but those of packed layers; outputs are fp32.

    Later changes of packed weights do not reach it.

    Args:
        towers: on the CPU, of a PyTorch with oneDNN (``torch.backends.mkldnn.is_available()``).
        dtype: of matrix products, float32 or bfloat16.
    """
    packed = share(towers)
    for tower in (packed.text_model, packed.vision_model):
        # An architecture with an attention of its own multiplies a layer's output with fp32 tensors.
        widen = tower.config._attn_implementation != "sdpa"
        if not widen:
            tower.set_attn_implementation(_ATTENTION)
        for module in list(tower.modules()):
            if isinstance(module, nn.ModuleList):  # the layers; poolers are small and stay as they are
                _pack_layers(module, dtype, widen)
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Conv2d) and child.stride == child.kernel_size:  # into patches
                    setattr(module, name, _Patches(child, dtype))
    return packed


def _pack_layers(module: nn.Module, dtype: torch.dtype, widen: bool) -> None:
    for name, child in list(module.named_children()):
        if isinstance(getattr(child, "fc1", None), nn.Linear) and hasattr(child, "activation_fn"):
            setattr(module, name, _MLP(child, dtype, widen))
        elif type(child) is nn.Linear:
            setattr(module, name, _Linear(child.weight, child.bias, dtype, widen))
        elif isinstance(child, nn.LayerNorm) and name in _PRE_NORMS:
            setattr(module, name, _Norm(child, dtype))
        else:
            _pack_layers(child, dtype, widen)


class _Norm(nn.Module):
    """A LayerNorm in fp32 whose result is cast once for all products that read it."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.dtype = norm, dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y.to(self.dtype)


class _Linear(nn.Module):
    """A linear layer on a packed weight; ``widen``: an output of fp32 whatever the product's dtype."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        widen: bool,
        epilogue: _Epilogue = _PLAIN,
    ) -> None:
        super().__init__()
        self.dtype, self.widen, self.epilogue = dtype, widen, epilogue
        # plain attributes: an opaque layout belongs in no state dict
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), _ROWS)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        name, approximate, _ = self.epilogue
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias, name, [], approximate)
        return y.float() if self.widen else y


class _MLP(nn.Module):
    """``fc2(activation_fn(fc1(x)))`` with the activation in the first product's epilogue where it has one."""

    def __init__(self, mlp: Any, dtype: torch.dtype, widen: bool) -> None:
        super().__init__()
        epilogue = _EPILOGUES.get(type(mlp.activation_fn), _PLAIN)
        scale = epilogue.scale
        self.fc1 = _Linear(scale * mlp.fc1.weight, scale * mlp.fc1.bias, dtype, False, epilogue)
        self.activation = mlp.activation_fn if epilogue is _PLAIN else nn.Identity()
        self.fc2 = _Linear(mlp.fc2.weight / scale, mlp.fc2.bias, dtype, widen)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.activation(self.fc1(x)))
        return y


class _Patches(nn.Module):
    """A convolution without padding whose stride is its kernel, as one product."""

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = convolution.weight  # towers cast the pixels to its dtype
        self.rows, self.columns = convolution.weight.shape[2:]
        self.product = _Linear(convolution.weight.flatten(1), convolution.bias, dtype, True)

    def forward(self, pixels: Tensor) -> Tensor:
        n, channels, height, width = pixels.shape
        rows, columns = height // self.rows, width // self.columns
        pixels = pixels[:, :, : rows * self.rows, : columns * self.columns]  # 14 does not divide SigLIP's 384
        cells = pixels.reshape(n, channels, rows, self.rows, columns, self.columns).permute(0, 2, 4, 1, 3, 5)
        patches: Tensor = self.product(cells.to(self.product.dtype).reshape(n, rows * columns, -1))
        return patches.transpose(1, 2).view(n, -1, rows, columns)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of [n, heads, tokens, width] as transformers asks for it: [n, tokens, heads, width].

    With few tokens, PyTorch's blocked kernel spends most of its time on packing; three plain products are 2.5 times as
    fast on AVX-512.
    """
    n, heads, tokens, width = query.shape
    if max(tokens, key.shape[2]) > _SHORT:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    q, k, v = (x.reshape(n * heads, -1, width) for x in (query, key, value))
    scores = torch.bmm(q, k.transpose(1, 2)).float().mul_(options["scaling"]).view(n, heads, tokens, -1)
    if attention_mask is None:
        causal = options.get("is_causal")
        if getattr(module, "is_causal", True) if causal is None else causal:
            attention_mask = scores.new_ones(scores.shape[2:], dtype=torch.bool).tril()
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores.masked_fill_(~attention_mask, float("-inf"))
        else:
            scores.add_(attention_mask)
    weights = scores.softmax(dim=-1).to(v.dtype).view(n * heads, tokens, -1)
    return torch.bmm(weights, v).view(n, heads, tokens, width).transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
