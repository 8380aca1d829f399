"""The released matchers' classes on our units: the same constructor, arguments, results and state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from m3el_fast import matching
from m3el_fast.compat import layers
from m3el_fast.compat.inputs import check, dims_of, without_autocast
from m3el_fast.compat.losses import InfoNCELoss, MCLETLoss, WeightedContrastiveLoss
from m3el_fast.compat.names import m3el_names, mimic_names
from m3el_fast.compat.settings import Settings
from m3el_fast.config import M3ELConfig, MIMICConfig
from m3el_fast.errors import InputError
from m3el_fast.features import FeatureDims, Features, Scores
from m3el_fast.matching import Matcher


class ReleasedMatcher(nn.Module):
    """What :class:`M3ELMatcher` and :class:`MIMICMatcher` share.

    Attributes:
        args: as given.
    """

    def __init__(self, args: Any) -> None:
        super().__init__()
        self.args = args

    def form(self, bidirection: bool = False) -> Matcher:
        """Our matcher on this one's layers: what it learns, this one learns.

        Raises:
            InputError: this model has no bidirectional form.
        """
        raise NotImplementedError

    def _features(self, role: str, *tensors: Tensor) -> Features:
        """Features from text_cls, text_tokens, image_cls, image_tokens of one side."""
        check(dict(zip((f"{role}_{name}" for name in _INPUTS), tensors, strict=True)), dims_of(self.form()))
        dtype = self.form().text_global_norm.weight.dtype
        return Features(*(tensor.to(dtype) if tensor.dtype.itemsize == 2 else tensor for tensor in tensors))


class M3ELMatcher(ReleasedMatcher):
    """M3EL's matcher (Hu et al., KDD 2025) as its released code has it (spec sections 3 and 10), by our kernels.

    Constructor, forward arguments, result, ``state_dict`` (unused weights included), parameter names and, from the same
    seed, initial weights are those of the released class. What differs:

    - It runs on a CPU too. Memory is O(B) for a batch of B, where the released code holds [B, B, tokens, tokens].
    - One entity or one mention is a batch like any other; the released bidirectional form fails on it.
    - ``cl_loss`` is of the features' dtype, fp32 for half precision; the released one turns into fp64.
    - Under autocast the matcher stays in the precision of its weights.
    - The units (``timm``, ``cmm``, ...) hold layers and cannot be called. The forward pass reads the layers that the
      constructor made: another layer put in the place of one of them is not seen.

    Args:
        args: any object with ``model``, which has ``input_hidden_dim`` = ``dt``, ``dv``, ``TIMM_hidden_dim``,
            ``IIMM_hidden_dim``, ``CMM_hidden_dim``, ``head_num``, ``weight`` (lambda), ``loss_temperature``,
            ``inter_weight``, ``intra_weight``, and, in the second release, ``with_cl_loss`` (1, the default, or 0 =
            ``cl_loss`` is always None) and ``loss_type`` (0 = :class:`WeightedContrastiveLoss`, the default,
            1 = :class:`InfoNCELoss`, 2 = :class:`MCLETLoss`, which needs ``IIMM_hidden_dim`` = ``dv``). State dicts of
            both releases load.

    Raises:
        InputError: one of these is missing or has no sense.
    """

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        model = Settings(args)
        dt, dv = model.equal("dt", "input_hidden_dim"), model.size("dv")
        text, image, cross = (model.size(f"{unit}_hidden_dim") for unit in ("TIMM", "IIMM", "CMM"))
        heads, tau = model.choice("head_num", range(1, 9)), model.number("loss_temperature")
        self._with_loss = not model.has("with_cl_loss") or model.choice("with_cl_loss", range(2)) == 1
        self._loss_type = model.choice("loss_type", range(3)) if model.has("loss_type") else None
        if self._loss_type == 2:
            model.equal("IIMM_hidden_dim", "dv")

        self.timm = layers.intra_modal(dt, text)
        self.iimm = layers.intra_modal(dv, image)
        self.cmm = layers.cmm(dt, dv, cross, heads, tau)
        self.cmmb = layers.cmmb(dt, dv, cross, heads, tau, text, image)
        self.text_cls_layernorm = nn.LayerNorm(dt)
        self.text_tokens_layernorm = nn.LayerNorm(dt)
        self.image_cls_layernorm = nn.LayerNorm(dv)
        self.image_tokens_layernorm = nn.LayerNorm(dv)
        # never used, down to the losses
        self.text_fc = nn.Linear(dt, text)
        self.image_fc = nn.Linear(dv, image)
        self.scale_text_cls_layernorm = nn.LayerNorm(text)
        self.scale_text_tokens_layernorm = nn.LayerNorm(text)
        self.scale_image_cls_layernorm = nn.LayerNorm(image)
        self.scale_image_tokens_layernorm = nn.LayerNorm(image)
        self.infonce_loss = InfoNCELoss(T_init=tau)
        # the first release never uses it, and makes it as wide as the other
        self.mclet_text_loss = MCLETLoss(image if self._loss_type is None else dt, tau)
        self.mclet_image_loss = MCLETLoss(image, tau)
        self.weight_cl_loss = WeightedContrastiveLoss(tau, model.number("inter_weight"), model.number("intra_weight"))

        sizes = {"d": cross, "heads": heads, "lam": model.number("weight")}
        dims = FeatureDims(dt, dt, dv, dv)
        self.register_load_state_dict_pre_hook(_resize_unused)  # type: ignore[no-untyped-call]  # torch has no type
        # a dict, so that the layers are registered under the released names alone
        self._forms = {bidirection: self._on_layers(dims, bidirection, sizes) for bidirection in (False, True)}

    def form(self, bidirection: bool = False) -> Matcher:
        return self._forms[bool(bidirection)]

    def forward(
        self,
        entity_text_cls: Tensor,
        entity_text_tokens: Tensor,
        mention_text_cls: Tensor,
        mention_text_tokens: Tensor,
        entity_image_cls: Tensor,
        entity_image_tokens: Tensor,
        mention_image_cls: Tensor,
        mention_image_tokens: Tensor,
        train_flag: bool = False,
        bidirection: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Scores [M, E] of M mentions and E entities; features come before the matcher's LayerNorms.

        Args:
            entity_text_cls: [E, dt]; entity_text_tokens: [E, Lt, dt]; entity_image_cls: [E, dv];
                entity_image_tokens: [E, Lv, dv]; the mentions' alike, [M, ...].
            train_flag: compute ``cl_loss``, which needs M = E, mention i belonging to entity i.
            bidirection: the bidirectional cross-modal form instead of the T2V-only one.

        Returns:
            ``(score, (text, image, image_text), cl_loss)``, where image_text is T2V, or with ``bidirection``
            ``(score, (text, image, text_image, image_text), cl_loss)`` of T2V and V2T. ``cl_loss`` is a scalar, None
            without ``train_flag`` or with ``with_cl_loss`` = 0.

        Raises:
            InputError: a shape does not match.
            ValueError: with ``train_flag``, M and E differ.
        """
        entity = self._features("entity", entity_text_cls, entity_text_tokens, entity_image_cls, entity_image_tokens)
        mention = self._features(
            "mention", mention_text_cls, mention_text_tokens, mention_image_cls, mention_image_tokens
        )
        with without_autocast(entity_text_cls.device):
            loss = self._contrastive(entity, mention) if train_flag and self._with_loss else None
            scores: Scores = self.form(bidirection)(entity, mention)
        names = ("text", "image", "t2v", "v2t") if bidirection else ("text", "image", "t2v")
        return scores.union, tuple(getattr(scores, name) for name in names), loss

    def _contrastive(self, entity: Features, mention: Features) -> Tensor:
        of_text, of_images = (
            (self.weight_cl_loss, self.weight_cl_loss),
            (self.infonce_loss, self.infonce_loss),
            (self.mclet_text_loss, self.mclet_image_loss),
        )[self._loss_type or 0]
        text = of_text(entity.text_global, mention.text_global)
        image = of_images(entity.image_global, mention.image_global)
        loss: Tensor = (text + image) / 2
        return loss

    def _on_layers(self, dims: FeatureDims, bidirection: bool, sizes: dict[str, Any]) -> Matcher:
        config = M3ELConfig.released(bidirection).model_copy(update=sizes)
        with torch.device("meta"):
            form = matching.M3ELMatcher(config, dims)
            form.cross = layers.CrossModalOnHeads(dims, config)
        return layers.on_layers(form, self, m3el_names(bidirection))


class MIMICMatcher(ReleasedMatcher):
    """MIMIC's matcher (Luo et al., KDD 2023) as its released code has it (spec sections 4 and 10), by our kernels.

    Constructor, forward arguments, result, ``state_dict``, parameter names and, from the same seed, initial weights are
    those of the released class. What differs: memory is O(B) for a batch of B; under autocast the matcher stays in the
    precision of its weights; the units (``tglu``, ``vdlu``, ``cmfu``) hold layers and cannot be called, and another
    layer put in the place of one of them is not seen.

    Args:
        args: any object with ``model``, which has ``input_hidden_dim`` = ``dt``, ``dv``, ``TGLU_hidden_dim``,
            ``IDLU_hidden_dim`` and ``CMFU_hidden_dim``.

    Raises:
        InputError: one of these is missing or has no sense.
    """

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        model = Settings(args)
        dt, dv = model.equal("dt", "input_hidden_dim"), model.size("dv")
        text, image, cross = (model.size(f"{unit}_hidden_dim") for unit in ("TGLU", "IDLU", "CMFU"))
        self.tglu = layers.intra_modal(dt, text)
        self.vdlu = nn.ModuleDict({f"dual_{way}": layers.dual(dv, image) for way in ("ent2men", "men2ent")})
        self.cmfu = layers.cmfu(dt, dv, cross)
        self.text_cls_layernorm = nn.LayerNorm(dt)
        self.text_tokens_layernorm = nn.LayerNorm(dt)
        self.image_cls_layernorm = nn.LayerNorm(dv)
        self.image_tokens_layernorm = nn.LayerNorm(dv)
        with torch.device("meta"):
            form = matching.MIMICMatcher(MIMICConfig(d=cross), FeatureDims(dt, dt, dv, dv))
        # a tuple, so that the layers are registered under the released names alone
        self._form = (layers.on_layers(form, self, mimic_names()),)

    def form(self, bidirection: bool = False) -> Matcher:
        if bidirection:
            raise InputError("bidirection", "False: MIMIC has one form", bidirection)
        return self._form[0]

    def forward(
        self,
        entity_text_cls: Tensor,
        entity_text_tokens: Tensor,
        mention_text_cls: Tensor,
        mention_text_tokens: Tensor,
        entity_image_cls: Tensor,
        entity_image_tokens: Tensor,
        mention_image_cls: Tensor,
        mention_image_tokens: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Scores [M, E] of M mentions and E entities: ``(score, (text, image, image_text))``.

        The arguments are those of :meth:`M3ELMatcher.forward`, and so is the error.
        """
        entity = self._features("entity", entity_text_cls, entity_text_tokens, entity_image_cls, entity_image_tokens)
        mention = self._features(
            "mention", mention_text_cls, mention_text_tokens, mention_image_cls, mention_image_tokens
        )
        with without_autocast(entity_text_cls.device):
            scores: Scores = self.form()(entity, mention)
        assert scores.text is not None and scores.image is not None and scores.cross is not None
        return scores.union, (scores.text, scores.image, scores.cross)


def _resize_unused(matcher: M3ELMatcher, state: Mapping[str, Tensor], prefix: str, *others: Any) -> None:
    """Make an MCLET head that is not used as wide as the one to be loaded: the releases differ in it."""
    weight = state.get(f"{prefix}mclet_text_loss.cl_fc.0.weight")
    head = matcher.mclet_text_loss
    if matcher._loss_type != 2 and weight is not None and len(weight) != head.embedding_dim:
        matcher.mclet_text_loss = MCLETLoss(len(weight), head.cl_temperature).to(matcher.text_fc.weight)


_INPUTS = ("text_cls", "text_tokens", "image_cls", "image_tokens")
