"""Configuration: frozen, typed, read from YAML; an unknown key or a value of the wrong kind is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from m3el_fast.errors import InputError

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, data: Any, where: str | Path) -> Self:
        """Check a mapping read from ``where``; an :class:`InputError` names the key, expected and got."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            key, expected, got = _explain(error.errors()[0])
            raise InputError(f"{where}, key {key or '(top)'}", expected, got) from None


class ScratchCLIP(_Config):
    """A small CLIP with random weights (spec section 1's architecture at other sizes)."""

    tokenizer: str | None = None  # folder with tokenizer files; None = train one on the data set's text
    vocab_size: Positive = 2000  # of the tokenizer that is trained
    text_width: Positive = 128
    text_layers: Positive = 2
    text_heads: Positive = 4
    vision_width: Positive = 128
    vision_layers: Positive = 2
    vision_heads: Positive = 4
    patch_size: Positive = 8
    image_size: Positive = 32
    projection_dim: Positive = 128


class EncoderConfig(_Config):
    """The two towers. Exactly one of ``pretrained``, (``text`` and ``vision``) or ``scratch`` is used.

    Attributes:
        pretrained: Hugging Face name or folder of one model with both towers (CLIP, SigLIP, BLIP, ...).
        text, vision: names or folders of a text tower and of a vision tower (BERT, RoBERTa, MiniLM, ViT, ...).
        scratch: a small CLIP with random weights.
        max_text_tokens: Lt.
        dt, dv: widths of text_global (None = the tower's own) and of the visual features.
        attention: attention implementation asked of transformers.
        gradient_checkpointing: recompute the towers' activations in the backward pass.
    """

    pretrained: str | None = None
    text: str | None = None
    vision: str | None = None
    scratch: ScratchCLIP | None = None
    max_text_tokens: Positive = 40
    dt: Positive | None = None
    dv: Positive = 96
    attention: Literal["sdpa", "eager"] = "sdpa"
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.text is None) != (self.vision is None):
            raise ValueError("expected text and vision together: both tower names, or neither")
        sources = [self.pretrained is not None, self.text is not None, self.scratch is not None]
        if sum(sources) != 1:
            raise ValueError("expected exactly one of: pretrained; text and vision; scratch")
        return self


class M3ELConfig(_Config):
    """M3EL (spec sections 2 and 3) with the switches of the paper's Tables 4, 5, 7 and 9.

    Attributes:
        d: hidden size of all matchers.
        contrastive: the loss on global features (Table 4); ``none`` = without it.
        icl_variant: how beta and gamma act (spec section 2).
        tau, beta, gamma: temperature, same-side weight, other-side weight of ICL.
        mclet_tau: temperature of the MCLET loss.
        mask_duplicates: leave pairs with the same gold entity out of every denominator.
        text, image, cross: matching modules that are on (Table 4, "w/o L + M").
        union_loss, text_loss, image_loss, cross_loss: losses that are on (Table 4, "w/o L").
        pooling: of the rows of A V in global-to-local matching (Table 5).
        intra_modal: one mechanism for both modalities, or VDLU for images (Table 9).
        cross_form: ``bidirectional`` (spec section 3.2) or ``t2v`` (the released code's second form).
        directions: of the bidirectional form (Table 7).
        heads: K; lam: lambda, weight of the pooled heads.
        union: how the components are averaged, and which cross-modal losses there are (spec section 3.3).
        token_mask: leave padding tokens out of global-to-local matching.
    """

    type: Literal["m3el"] = "m3el"
    d: Positive = 96
    contrastive: Literal["icl", "infonce", "mclet", "none"] = "icl"
    icl_variant: Literal["paper", "released"] = "paper"
    tau: Rate = 0.03
    beta: float = 0.8
    gamma: float = 1.0
    mclet_tau: Rate = 0.6
    mask_duplicates: bool = False
    text: bool = True
    image: bool = True
    cross: bool = True
    union_loss: bool = True
    text_loss: bool = True
    image_loss: bool = True
    cross_loss: bool = True
    pooling: Literal["mean", "max", "soft"] = "mean"
    intra_modal: Literal["unified", "independent"] = "unified"
    cross_form: Literal["bidirectional", "t2v"] = "bidirectional"
    directions: Literal["both", "t2v", "v2t"] = "both"
    heads: Annotated[int, Field(ge=1, le=8)] = 5
    lam: float = 1.0
    union: Literal["paper", "released"] = "paper"
    token_mask: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.text or self.image or self.cross):
            raise ValueError("expected at least one of the modules text, image, cross to be on")
        if self.cross_form == "t2v" and self.directions == "v2t":
            raise ValueError("expected directions t2v or both with cross_form t2v, which has no other")
        losses = [self.union_loss, self.text and self.text_loss, self.image and self.image_loss]
        losses += [self.cross and self.cross_loss, self.contrastive != "none"]
        if not any(losses):
            raise ValueError("expected at least one loss to be on")
        return self

    @classmethod
    def paper(cls) -> M3ELConfig:
        """Bidirectional CMN of spec 3.2; union, losses and ICL as the paper prints them."""
        return cls()

    @classmethod
    def released(cls, bidirectional: bool) -> M3ELConfig:
        """The released code's form: bidirectional (WikiDiverse) or T2V only (WikiMEL, RichpediaMEL)."""
        return cls(icl_variant="released", union="released", cross_form="bidirectional" if bidirectional else "t2v")


class MIMICConfig(_Config):
    """MIMIC (spec section 4)."""

    type: Literal["mimic"] = "mimic"
    d: Positive = 96
    mask_duplicates: bool = False
    token_mask: bool = False


MatcherConfig = Annotated[M3ELConfig | MIMICConfig, Field(discriminator="type")]


class DataConfig(_Config):
    """Where the data is and which text describes an entity.

    Attributes:
        dir: a folder in the MIMIC layout (spec section 7); None = the generated sample set.
        entity_text: the entity's context.
        kb_mentions: training mentions made from each entity's own name and text (none in the papers); they teach a
            model from scratch the entities and words that no real mention has.
        strict_images: a missing or unreadable image is an error.
        strict: a mention whose answer is not in the KB is an error (a ``nil`` answer never is).
    """

    dir: str | None = None
    entity_text: Literal["attr", "desc"] = "attr"
    kb_mentions: Annotated[int, Field(ge=0)] = 0
    strict_images: bool = False
    strict: bool = False


class TrainConfig(_Config):
    """Optimisation (spec section 8).

    Attributes:
        batch_size: of one optimiser step, over all processes and micro batches.
        accumulation: micro batches of a step; each has its own negatives only.
        schedule: of the learning rate after ``warmup`` (share of all steps).
        eval_every: epochs between validations; patience: validations without a better MRR before stopping.
        precision: autocast of the forward pass.
        freeze_encoder: train on tower outputs that are encoded once and memory-mapped.
    """

    epochs: Positive = 20
    batch_size: Positive = 128
    accumulation: Positive = 1
    lr: Rate = 1e-5
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Rate = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip_norm: Rate | None = None
    eval_every: Positive = 2
    patience: Positive = 3
    seed: int = 43
    precision: Literal["fp32", "bf16"] = "fp32"
    freeze_encoder: bool = False


class RunConfig(_Config):
    """All that a training run depends on."""

    model: MatcherConfig = M3ELConfig()
    encoder: EncoderConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @classmethod
    def load(cls, path: str | Path) -> RunConfig:
        """Read a YAML file; a bare name ("wikimel") is one of the presets in the package."""
        return cls.parse(read_yaml(resolve_preset(path)), path)

    def dump(self) -> str:
        """The whole configuration as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def resolve_preset(path: str | Path) -> Path:
    """``path`` itself where it exists, else the preset of that name."""
    preset = PRESETS / f"{path}.yaml"
    if Path(path).exists() or not preset.exists():
        return Path(path)
    return preset


def read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise InputError(path, "a YAML file or one of the presets " + ", ".join(preset_names()), "no such file")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, "a readable file", error.strerror) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(path, "valid YAML", " ".join(str(error).split())) from None


def _explain(error: Any) -> tuple[str, str, object]:
    """Key, expected and got of one of pydantic's errors."""
    kind, parts = error["type"], [str(part) for part in error["loc"]]
    if parts[:1] == ["model"]:
        del parts[1:2]  # which member of the union it is
    if kind.startswith("union_tag"):
        return ".".join([*parts, "type"]), "m3el or mimic", error["ctx"].get("tag", "nothing")
    key = ".".join(parts)
    if kind in ("extra_forbidden", "invalid_key"):
        return key, "a known key", "an unknown one"
    if kind == "missing":
        return key, "a value", "nothing"
    if kind in ("model_type", "model_attributes_type"):
        return key, "a mapping", repr(error["input"])
    expected = re.split(", got |, unable ", error["msg"])[0]
    return key, expected.removeprefix("Input should be ").removeprefix("Value error, expected "), repr(error["input"])
