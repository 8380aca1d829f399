"""The Hugging Face models behind an encoder: loaded with weights, or built from a configuration with random ones."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    PreTrainedConfig,
    PreTrainedModel,
)

from m3el_fast.config import EncoderConfig
from m3el_fast.encoder.hub import fetch
from m3el_fast.errors import InputError

DUAL = ("clip", "siglip", "siglip2", "blip", "vision-text-dual-encoder")
_BLIP_TASKS: dict[str, type[PreTrainedModel]] = {
    "BlipForQuestionAnswering": BlipForQuestionAnswering,
    "BlipForImageTextRetrieval": BlipForImageTextRetrieval,
}
_POOLER = re.compile(r"(?:^|.*\.)pooler(?=\.)")


@dataclass(frozen=True)
class Sources:
    """The models that give the two towers: one and the same object where a model has both."""

    text: PreTrainedModel
    vision: PreTrainedModel

    def describe(self) -> dict[str, Any]:
        """Configurations as JSON, from which :func:`rebuild` makes the same modules."""
        if self.text is self.vision:
            return {"model": _describe(self.text)}
        return {"text": _describe(self.text), "vision": _describe(self.vision)}


def load(config: EncoderConfig) -> Sources:
    """Pretrained models of ``config.pretrained``, or of ``config.text`` and ``config.vision``.

    Raises:
        InputError: a name that cannot be loaded, an unsupported architecture, a checkpoint without a tower's weights.
    """
    text_key, vision_key = keys(config)
    both = text_key == vision_key
    text = _load(*text_key, config, DUAL if both else ())
    vision = text if both else _load(*vision_key, config)
    if not both:
        _check_modality(*text_key, text, "input_ids")
        _check_modality(*vision_key, vision, "pixel_values")
    return Sources(text, vision)


def keys(config: EncoderConfig) -> tuple[tuple[str, str], tuple[str, str]]:
    """Configuration key and name of the text tower's model and of the vision tower's."""
    if config.pretrained is not None:
        return (("encoder.pretrained", config.pretrained),) * 2
    return ("encoder.text", str(config.text)), ("encoder.vision", str(config.vision))


def rebuild(config: EncoderConfig, described: Any, where: str) -> Sources:
    """Models with random weights from what :meth:`Sources.describe` wrote.

    Raises:
        InputError: it is something else.
    """
    parts = described if isinstance(described, dict) else {}
    if parts.keys() not in ({"model"}, {"text", "vision"}):
        raise InputError(where, "one entry model, or text and vision", ", ".join(parts) or type(described).__name__)
    models = {name: build(_parse(content, f"{where}, {name}"), config) for name, content in parts.items()}
    return Sources(models["model"], models["model"]) if "model" in models else Sources(**models)


def build(hf_config: PreTrainedConfig, config: EncoderConfig) -> PreTrainedModel:
    """A model with random fp32 weights."""
    task = _task(hf_config)
    model: PreTrainedModel = task(hf_config) if task else AutoModel.from_config(hf_config)  # type: ignore[no-untyped-call]
    return _prepare(model, config, getattr(hf_config, "absent_poolers", ()))


def _load(where: str, name: str, config: EncoderConfig, supported: Collection[str] = ()) -> PreTrainedModel:
    hf_config = _load_config(where, name, supported)
    task = _task(hf_config) or AutoModel

    def load_weights(local: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        found: Any = task.from_pretrained(
            name, config=hf_config, dtype=torch.float32, output_loading_info=True, local_files_only=local
        )
        return found[0], found[1]

    model, info = fetch(where, "weights", name, load_weights)
    missing = sorted(info["missing_keys"])
    poolers = sorted({match.group() for key in missing if (match := _POOLER.match(key))})
    others = [key for key in missing if "." in key and not _POOLER.match(key)]  # logit_scale takes no part
    if others:
        expected = f"weights for every part of {type(model).__name__}"
        raise InputError(f"{where}, {name}", expected, f"none for {len(others)} of them, first {others[0]}")
    return _prepare(model, config, poolers)


def _load_config(where: str, name: str, supported: Collection[str]) -> PreTrainedConfig:
    content, _ = fetch(
        where,
        "config.json",
        name,
        lambda local: _existing(PreTrainedConfig.get_config_dict(name, local_files_only=local)),
    )
    kind = str(content.get("model_type"))
    if supported and kind not in supported:
        expected = f"a model with both towers ({', '.join(supported)})"
        raise InputError(
            f"{where}, {name}", expected, f"model_type {kind}", "Give towers of other kinds as text and vision"
        )
    known = kind in CONFIG_MAPPING and (kind in DUAL or not CONFIG_MAPPING[kind].sub_configs)
    if not known or content.get("is_encoder_decoder"):
        expected = f"a text or vision tower that transformers knows, or one of {', '.join(DUAL)}"
        raise InputError(f"{where}, {name}", expected, f"model_type {kind}")
    return _parse(content, f"{where}, {name}")


def _existing(found: tuple[dict[str, Any], Any]) -> tuple[dict[str, Any], Any]:
    if not found[0]:  # transformers' answer to a folder without the file
        raise OSError("no config.json")
    return found


def _task(hf_config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """BLIP's released checkpoints are task models: AutoModel's class would leave their text tower random."""
    return _BLIP_TASKS.get((hf_config.architectures or [""])[0])


def _check_modality(where: str, name: str, model: PreTrainedModel, main_input: str) -> None:
    kind = model.config.model_type
    if kind not in DUAL and model.main_input_name != main_input:
        expected = "a text tower" if main_input == "input_ids" else "a vision tower"
        raise InputError(f"{where}, {name}", expected, f"model_type {kind}, which reads {model.main_input_name}")


def _prepare(model: PreTrainedModel, config: EncoderConfig, absent_poolers: Collection[str]) -> PreTrainedModel:
    for name in absent_poolers:
        # The checkpoint does not pool (RoBERTa's, a ViT classifier's): a random layer is no pooler of the tower's own.
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, None)
    model.config.absent_poolers = list(absent_poolers)
    if config.attention == "eager":  # sdpa is transformers' own choice wherever a model has it
        model.set_attn_implementation("eager")
    if config.gradient_checkpointing:
        _checkpoint_gradients(model)
    return model


def _checkpoint_gradients(model: PreTrainedModel) -> None:
    # VisionTextDualEncoder does not say that it supports what its towers support
    towers = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    for part in towers if model.config.model_type == "vision-text-dual-encoder" else [model]:
        if not part.supports_gradient_checkpointing:
            kind = type(part).__name__
            raise InputError("encoder.gradient_checkpointing", "a model that supports it", kind, "Set it to false")
        if hasattr(part, "activation_checkpointing_enable"):
            part.activation_checkpointing_enable()
        else:  # the older name in transformers 5, whose default was reentrant
            part.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]


def _describe(model: PreTrainedModel) -> dict[str, Any]:
    model.config.architectures = [type(model).__name__]
    content: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return content


def _parse(content: Any, where: str) -> PreTrainedConfig:
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise InputError(where, "a configuration with a model_type that this transformers knows", kind)
    hf_config: PreTrainedConfig = CONFIG_MAPPING[kind].from_dict(content)
    return hf_config
