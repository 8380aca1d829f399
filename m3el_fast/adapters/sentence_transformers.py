"""M3EL and MIMIC as a CrossEncoder of sentence-transformers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from m3el_fast.adapters.extras import require
from m3el_fast.adapters.pairs import open_model, score_pairs
from m3el_fast.adapters.records import Item, parse_document, parse_query
from m3el_fast.devices import named_device
from m3el_fast.errors import InputError
from m3el_fast.models import MELModel

require("sentence_transformers", "sentence-transformers")

from sentence_transformers import CrossEncoder  # noqa: E402
from sentence_transformers.util.decorators import cross_encoder_predict_rank_args_decorator  # noqa: E402

_log = logging.getLogger("sentence_transformers.cross_encoder.model")  # whose level decides about progress bars


class M3ELCrossEncoder(CrossEncoder):
    """A ``CrossEncoder`` that scores (mention, entity) pairs with a model of this package.

    A pair is ``(query, document)``, each a string, a PIL image or a mapping with ``text`` and ``image``; a query's
    mapping may have ``mention`` too, a document's ``name`` (:func:`~m3el_fast.adapters.records.parse_query`,
    :func:`~m3el_fast.adapters.records.parse_document`). A string is always text, never a path.

    Scores are the union scores, without bounds: ``activation_fn`` is the identity unless one is given. It does not
    train (``python -m m3el_fast.train`` does), and runs in one process.

    Args:
        model_name_or_path: a model, which is put into evaluation mode and not copied, or a checkpoint's folder or Hub
            name.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None = where the model given is, for a checkpoint a GPU where there is
            one.
        prompts, default_prompt_name: as CrossEncoder's; a prompt is put before the query's text.
        activation_fn: applied to scores [P] by :meth:`predict`.

    Raises:
        InputError: the checkpoint or the device cannot be used.
    """

    def __init__(
        self,
        model_name_or_path: MELModel | str | Path,
        *,
        device: torch.device | str | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        model = open_model(model_name_or_path, device)
        super().__init__(
            modules=[model],
            device=str(model.device),
            prompts=prompts,
            default_prompt_name=default_prompt_name,
            activation_fn=nn.Identity() if activation_fn is None else activation_fn,
        )

    @torch.no_grad()  # not inference_mode, in which a model that moves gets weights that cannot be trained
    @cross_encoder_predict_rank_args_decorator
    def predict(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Tensor], Tensor] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Scores of pairs, as ``CrossEncoder.predict``: each distinct query and document is encoded once.

        Args:
            inputs: a pair, or a sequence of P pairs.
            batch_size: texts or pictures that are encoded at a time.
            apply_softmax: of no effect, as in a CrossEncoder with one label.
            device: where to move the model; one device.
            pool: None: there is one process; chunk_size is of no effect then.

        Returns:
            [P] fp32: a numpy array; a tensor with ``convert_to_tensor``; else a list of tensors without dimensions. Of
            a single pair its element.

        Raises:
            InputError: an input is no pair of a query and a document, a picture cannot be read (both name the pair),
                ``batch_size`` is not positive, there is a pool or a list of devices, or no such device, or the weights
                are not in float32.
            TypeError: another argument is given.
        """
        if kwargs:
            raise TypeError(f"predict() has no argument {', '.join(map(repr, kwargs))} with a model of m3el_fast")
        if pool is not None or isinstance(device, list):
            got = "a pool" if device is None else device
            raise InputError("device", "one device and no pool: a model of m3el_fast runs in one process", got)
        if device is not None:
            self.to(named_device(str(device)))
        self.eval()
        single = self.is_singular_input(inputs)
        pairs = [inputs] if single else list(inputs)
        queries, documents = _parse(pairs, self._resolve_prompt(prompt, prompt_name) or "")
        progress = _log.isEnabledFor(logging.INFO) if show_progress_bar is None else show_progress_bar
        scores = score_pairs(self.model, queries, documents, batch_size, progress)
        scores = (self.activation_fn if activation_fn is None else activation_fn)(scores)
        if convert_to_tensor:
            found: Any = scores
        else:
            found = scores.float().cpu().numpy() if convert_to_numpy else list(scores)
        return found[0] if single else found

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Write the model's checkpoint, which this class loads; prompts and activation are not in it.

        The other arguments, of ``CrossEncoder.save``, are of no effect.
        """
        self.model.save_pretrained(path)

    @property
    def model(self) -> MELModel:
        """The model of this package."""
        model: MELModel = self[0]
        return model

    @property
    def num_labels(self) -> int:
        return 1

    @property
    def config(self) -> PretrainedConfig:
        config = PretrainedConfig()
        config.num_labels = 1
        return config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.encoder.tokenizer

    @property
    def max_seq_length(self) -> int:
        return self.model.encoder.config.max_text_tokens

    @property
    def modalities(self) -> list[Any]:
        return ["text", "image", ("text", "image")]

    @property
    def transformers_model(self) -> None:
        """None: the two towers are only a part of the model."""
        return None


def _parse(pairs: Sequence[Any], prompt: str) -> tuple[list[Item], list[Item]]:
    """The queries, each with ``prompt`` before its text, and the documents of pairs."""
    for number, pair in enumerate(pairs, 1):
        sequence = isinstance(pair, list | tuple | np.ndarray)
        if not sequence or len(pair) != 2:
            got = f"a sequence of {len(pair)}" if sequence else type(pair).__name__
            raise InputError(f"inputs, pair {number}", "a query and a document", got)
    queries = _parse_all([pair[0] for pair in pairs], parse_query, "query")
    if prompt:
        prompted = {item: replace(item, text=prompt + item.text) for item in queries}
        queries = [prompted[item] for item in queries]
    return queries, _parse_all([pair[1] for pair in pairs], parse_document, "document")


def _parse_all(records: list[Any], parse: Callable[[object, str], Item], word: str) -> list[Item]:
    """Each object parsed once: a query comes with each of its documents."""
    known: dict[int, Item] = {}
    items = []
    for number, record in enumerate(records, 1):
        if id(record) not in known:
            known[id(record)] = parse(record, f"inputs, pair {number}, {word}")
        items.append(known[id(record)])
    return items
