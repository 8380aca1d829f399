"""Tiny random checkpoints of every supported architecture, saved as folders the way their authors publish them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

SENTENCE = "mercury planet element god freddie singer of the solar system chemical roman a [sep] <unk>"
TEXTS = [
    "Mercury [SEP] planet of the solar system",
    "Freddie Mercury [SEP] singer",
    "mercury",
    "Mercury [SEP] " + "chemical element " * 20,
    "",
    "roman god",
    "a singer [SEP] unknownword",
]
LT = 12
MEAN, STD = [0.1, 0.5, 0.6], [0.3, 0.2, 0.5]
SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {"image_size": 32, "patch_size": 16}
POSITIONS = 24


def tokenizer(start: str | None, end: str, pad: str, first: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A lower-casing word tokenizer whose special tokens ``first`` have the ids 0, 1, ... and frame every text."""
    vocabulary = {
        token: i for i, token in enumerate([*first, *(word for word in SENTENCE.split() if word not in first)])
    }
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = [token for token in (start, end) if token]
    core.post_processor = processors.TemplateProcessing(
        single=f"{start or ''} $A {end}".strip(), special_tokens=[(token, vocabulary[token]) for token in frame]
    )
    roles = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": "<unk>"}
    if start in ("[CLS]", "<s>"):
        roles |= {"cls_token": start, "sep_token": end}
    given = {role: token for role, token in roles.items() if token}
    return PreTrainedTokenizerFast(tokenizer_object=core, **given)


def clip_tokenizer(first: tuple[str, ...] = ("a", "<start>", "the", "<end>")) -> PreTrainedTokenizerFast:
    """Padding is the end of text, as in CLIP."""
    return tokenizer("<start>", "<end>", "<end>", first)


def bert_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer("[CLS]", "[SEP]", "[PAD]", ("[PAD]", "[CLS]", "[SEP]"))


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer("<s>", "</s>", "<pad>", ("<s>", "<pad>", "</s>"))


def siglip_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer(None, "</s>", "<pad>", ("<pad>", "</s>"))


def save(folder: Path, model: PreTrainedModel, words: PreTrainedTokenizerFast | None, images: bool = True) -> Path:
    """Write ``model`` with weights large enough for every part to matter, its tokenizer and its image processor."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    if words is not None:
        words.save_pretrained(folder)
    if images:
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return folder


def _text(words: PreTrainedTokenizerFast) -> dict[str, int]:
    ids = {f"{role}_token_id": getattr(words, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    return {**SIZES, "vocab_size": len(words), "max_position_embeddings": POSITIONS, **ids}


def bert_config() -> BertConfig:
    return BertConfig(**_text(bert_tokenizer()))


def vit_config() -> ViTConfig:
    return ViTConfig(**SIZES, **IMAGE)


def clip(folder: Path) -> Path:
    words = clip_tokenizer()
    vision = {**SIZES, **IMAGE, "hidden_size": 48}
    config = CLIPConfig(text_config=_text(words), vision_config=vision, projection_dim=24)
    return save(folder, CLIPModel(config), words)


def siglip(folder: Path) -> Path:
    words = siglip_tokenizer()
    config = SiglipConfig(text_config=_text(words), vision_config={**SIZES, **IMAGE})
    return save(folder, SiglipModel(config), words)


def siglip2(folder: Path) -> Path:
    words = siglip_tokenizer()
    # transformers reads any tokenizer beside this model as Gemma's, which adds two tokens of its own
    config = Siglip2Config(
        text_config={**_text(words), "vocab_size": len(words) + 2},
        vision_config={**SIZES, "patch_size": 16, "num_patches": 4},
    )
    return save(folder, Siglip2Model(config), words)


def _blip(folder: Path, kind: type[PreTrainedModel]) -> Path:
    words = bert_tokenizer()
    text = {**_text(words), "encoder_hidden_size": 48}
    vision = {**SIZES, **IMAGE, "hidden_size": 48}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=24, image_text_hidden_size=20)
    return save(folder, kind(config), words)


def blip(folder: Path) -> Path:
    return _blip(folder, BlipModel)


def blip_vqa(folder: Path) -> Path:
    return _blip(folder, BlipForQuestionAnswering)


def blip_retrieval(folder: Path) -> Path:
    return _blip(folder, BlipForImageTextRetrieval)


def dual(folder: Path) -> Path:
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vit_config(), bert_config(), projection_dim=24)
    return save(folder, VisionTextDualEncoderModel(config), bert_tokenizer())


def bert(folder: Path) -> Path:
    return save(folder, BertModel(bert_config()), bert_tokenizer(), images=False)


def bert_without_cls(folder: Path) -> Path:
    """A masked language model (no pooler) whose texts begin with their first word."""
    return save(folder, BertForMaskedLM(bert_config()), siglip_tokenizer(), images=False)


def roberta(folder: Path) -> Path:
    words = roberta_tokenizer()
    config = RobertaConfig(**_text(words))
    return save(folder, RobertaForMaskedLM(config), words, images=False)


def vit(folder: Path) -> Path:
    return save(folder, ViTModel(vit_config()), None)


def vit_classifier(folder: Path) -> Path:
    return save(folder, ViTForImageClassification(vit_config()), None)


def siglip_vision_without_head(folder: Path) -> Path:
    return save(folder, SiglipVisionModel(SiglipVisionConfig(**SIZES, **IMAGE, vision_use_head=False)), None)


Maker = Callable[[Path], Path]
WHOLE: dict[str, Maker] = {
    "clip": clip,
    "siglip": siglip,
    "siglip2": siglip2,
    "blip": blip,
    "blip-vqa": blip_vqa,
    "blip-retrieval": blip_retrieval,
    "dual-encoder": dual,
}
PAIRS: dict[str, tuple[Maker, Maker]] = {
    "bert+vit": (bert, vit),
    "roberta+clip": (roberta, clip),
    "clip+vit-classifier": (clip, vit_classifier),
    "bert-without-cls+siglip-without-head": (bert_without_cls, siglip_vision_without_head),
}
