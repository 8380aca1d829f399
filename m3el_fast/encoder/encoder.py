"""The encoder that mentions and entities share: towers, then the projections to the matcher's widths."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from m3el_fast.config import EncoderConfig
from m3el_fast.encoder import sources
from m3el_fast.encoder.pixels import CLIP_MEAN, CLIP_STD, Normalise, load_normalise
from m3el_fast.encoder.probe import probe
from m3el_fast.encoder.scratch import scratch_config, spread_tokens
from m3el_fast.encoder.sources import Sources
from m3el_fast.encoder.text import load_tokenizer, tokenize, with_right_padding
from m3el_fast.encoder.towers import Towers
from m3el_fast.errors import InputError
from m3el_fast.features import FeatureDims, Features, Inputs, TowerOutputs

ARCHITECTURE_FILE = "towers.json"


class Encoder(nn.Module):
    """Text and images -> the four features of spec section 1.

    Made by :meth:`create` or :meth:`from_architecture`. Autocast is the caller's; weights are fp32 when made, whatever
    the checkpoint holds. ``state_dict`` names: ``model.*`` as in :class:`Towers` (for CLIP those of Hugging Face's
    ``CLIPModel``), ``image_global_proj.*``, ``image_local_proj.*`` and, where ``config.dt`` asks for it,
    ``text_global_proj.*``. Parameters that take no part in the features have ``requires_grad=False``.

    Attributes:
        config: what it was made from.
        dims: widths of the four features.
        image_size: S, the side of the square images that it reads.
        tokenizer: of the text tower.
        model: the towers with the model's own projections.
    """

    def __init__(
        self, config: EncoderConfig, models: Sources, tokenizer: PreTrainedTokenizerBase, normalise: Normalise
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.normalise = normalise
        self.model = Towers(models.text, models.vision, tokenizer)
        self._architecture = models.describe()
        self.image_size = self.model.image_size()
        self._check_text()
        self.eval()  # the probe must not draw from the random number generator
        text_global, text_local, image_global, image_local = probe(self.model, *self.tokenize(["a"]), self.image_size)
        dt = config.dt or text_global
        self.text_global_proj = nn.Identity() if dt == text_global else nn.Linear(text_global, dt)
        self.image_global_proj = nn.Linear(image_global, config.dv)
        self.image_local_proj = nn.Linear(image_local, config.dv)
        self.dims = FeatureDims(dt, text_local, config.dv, config.dv)
        self.train()

    def _check_text(self) -> None:
        length, limit = self.config.max_text_tokens, self.model.text_limit()
        if limit is not None and length > limit:
            raise InputError("encoder.max_text_tokens", f"at most {limit}, the text tower's positions", length)
        ids, mask = self.tokenize(["a [SEP] a"])
        rows, known = self.model.vocabulary_size(), max(self.tokenizer.vocab_size, int(ids.max()) + 1)
        if known > rows:
            raise InputError("encoder, tokenizer", f"at most {rows} tokens, the text tower's vocabulary", known)
        if self.model.pools_at_end and ids[0, mask.sum() - 1] != self.model.end_id:
            got = f"texts without one at their end ({self.tokenizer.eos_token})"
            raise InputError("encoder, tokenizer", "a closing end-of-text token, where CLIP pools", got)

    @classmethod
    def create(cls, config: EncoderConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Self:
        """An encoder with pretrained towers, or with random ones for ``config.scratch``.

        Args:
            config: which towers.
            tokenizer: for ``config.scratch`` without a tokenizer folder, and only there.

        Raises:
            InputError: a model that cannot be loaded or is not supported, or sizes that do not fit.
            ValueError: a tokenizer is given where the configuration names one, or neither.
        """
        named = config.scratch is None or config.scratch.tokenizer is not None
        if named == (tokenizer is not None):
            raise ValueError("tokenizer: expected one exactly where the configuration names none (encoder.scratch)")
        if config.scratch is None:
            models = sources.load(config)
            text, vision = sources.keys(config)
            return cls(config, models, load_tokenizer(*text), load_normalise(*vision))
        if config.scratch.tokenizer is not None:
            tokenizer = load_tokenizer("encoder.scratch.tokenizer", config.scratch.tokenizer)
        assert tokenizer is not None
        model = sources.build(scratch_config(config.scratch, tokenizer, config.max_text_tokens), config)
        spread_tokens(model)
        return cls(config, Sources(model, model), with_right_padding(tokenizer), Normalise(CLIP_MEAN, CLIP_STD))

    @classmethod
    def from_architecture(cls, config: EncoderConfig, folder: str | Path) -> Self:
        """An encoder with random weights from what :meth:`save_architecture` wrote; asks no hub.

        Raises:
            InputError: a file is missing, unreadable or of another shape.
        """
        path = Path(folder) / ARCHITECTURE_FILE
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(path, "the towers' configurations", error) from None
        models = sources.rebuild(config, described, str(path))
        return cls(config, models, load_tokenizer("tokenizer", str(folder)), load_normalise("images", str(folder)))

    def save_architecture(self, folder: str | Path) -> None:
        """Write ``towers.json``, the tokenizer's files and ``preprocessor_config.json`` into ``folder``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            self.tokenizer.save_pretrained(temporary)
            _write_json(Path(temporary) / ARCHITECTURE_FILE, self._architecture)
            _write_json(Path(temporary) / "preprocessor_config.json", self.normalise.processor(self.image_size))
            for path in Path(temporary).iterdir():
                os.replace(path, Path(folder) / path.name)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask [n, Lt] int64, padded and truncated to Lt; the closing special token stays."""
        return tokenize(self.tokenizer, texts, self.config.max_text_tokens)

    def towers(self, inputs: Inputs) -> TowerOutputs:
        """Both towers, each called once and each distinct image encoded once."""
        text_global, text_local = self.model.text(inputs.input_ids, inputs.attention_mask)
        pixel_values, index = self.pixel_values(inputs.pixels, inputs.image_index)
        image_global, image_local = self.model.image(pixel_values)
        return TowerOutputs(text_global, text_local, image_global, image_local, index, inputs.attention_mask)

    def pixel_values(self, pixels: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """What the vision tower reads, [u, 3, S, S], and each item's row in it; arguments as in :class:`Inputs`."""
        pixel_values = self.normalise(pixels)
        absent = image_index < 0
        if not absent.any():
            return pixel_values, image_index
        # "No image" is one more image, all zero after normalisation (spec section 1).
        pixel_values = torch.cat([pixel_values, pixel_values.new_zeros(1, *pixel_values.shape[1:])])
        return pixel_values, image_index.masked_fill(absent, len(pixel_values) - 1)

    def project(self, towers: TowerOutputs) -> Features:
        """Features at the matcher's widths; those of images stay one row per distinct image."""
        return Features(
            text_global=self.text_global_proj(towers.text_global),
            text_local=towers.text_local,
            image_global=self.image_global_proj(towers.image_global),
            image_local=self.image_local_proj(towers.image_local),
            image_index=towers.image_index,
            text_mask=towers.attention_mask.bool(),
        )

    def forward(self, inputs: Inputs) -> Features:
        """``project(towers(inputs))``."""
        return self.project(self.towers(inputs))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
