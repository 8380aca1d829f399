"""Names of the released code's weights and ours (spec section 10)."""

from __future__ import annotations

import re

_NORMS = {
    "text_cls_layernorm": "text_global_norm",
    "text_tokens_layernorm": "text_local_norm",
    "image_cls_layernorm": "image_global_norm",
    "image_tokens_layernorm": "image_local_norm",
}
_INTRA = {"fc_query": "query", "fc_key": "key", "fc_value": "value", "fc_cls": "gate", "layer_norm": "norm"}
_CROSS = {
    "text_fc": "text",
    "image_fc": "image",
    "match_module.trans_linear": "u",
    "gate_fc": "gate",
    "gate_layer_norm": "norm",
}
_DUAL = {
    "cls_fc": "cls",
    "tokens_fc": "tokens",
    "fc": "fc",
    "gate_fc": "gate",
    "add_layer_norm": "norm1",
    "layer_norm": "norm2",
}
_CMFU = {"text_fc": "text", "image_fc": "image", "gate_fc": "gate", "gate_layer_norm": "norm"}

_UNUSED_M3EL = re.compile(
    r"(cmmb?\.)?mclet_(text|image)_loss\.cl_fc\.[02]\.(weight|bias)"
    r"|scale_(text|image)_(cls|tokens)_layernorm\.(weight|bias)"
    r"|(text|image)_fc\.(weight|bias)"
    r"|weight_cl_loss\.logit_scale"
)
_UNUSED_MIMIC = re.compile(r"cmfu\.context_layer_norm\.(weight|bias)")


def _layers(released: str, ours: str, layers: dict[str, str]) -> dict[str, str]:
    return {
        f"{released}{theirs}.{kind}": f"{ours}{mine}.{kind}"
        for theirs, mine in layers.items()
        for kind in ("weight", "bias")
    }


def m3el_names(bidirectional: bool) -> dict[str, str]:
    """Released name -> our name of every weight that M3EL's matcher uses in one of its two forms."""
    form = "cmmb." if bidirectional else "cmm."
    names = _layers("", "", _NORMS) | _layers("timm.", "text.", _INTRA) | _layers("iimm.", "image.", _INTRA)
    names |= _layers(form, "cross.", _CROSS) | {f"{form}multi_head_module.weight": "cross.head_weight"}
    return names if bidirectional else names | _layers("cmm.fusion_module.", "cross.", {"linear": "fusion"})


def mimic_names() -> dict[str, str]:
    """Released name -> our name of every weight that MIMIC's matcher uses."""
    names = _layers("", "", _NORMS) | _layers("tglu.", "text.", _INTRA) | _layers("cmfu.", "cross.", _CMFU)
    names |= _layers("vdlu.dual_ent2men.", "image.entity_to_mention.", _DUAL)
    return names | _layers("vdlu.dual_men2ent.", "image.mention_to_entity.", _DUAL)


def is_mimic(released: set[str]) -> bool:
    """Whether released matcher names belong to MIMIC."""
    return any(name.startswith(("tglu.", "vdlu.", "cmfu.")) for name in released)


def is_never_used(name: str, *, mimic: bool, bidirectional: bool) -> bool:
    """Whether the released code creates the matcher weight ``name`` without using it in the form asked for."""
    if mimic:
        return _UNUSED_MIMIC.fullmatch(name) is not None
    return _UNUSED_M3EL.fullmatch(name) is not None or name in m3el_names(not bidirectional)
