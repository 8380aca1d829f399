"""Queries and documents that are in no index, encoded: each distinct text, picture and pair of both once."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from m3el_fast.adapters.records import Item, pixels
from m3el_fast.errors import InputError
from m3el_fast.features import Vectors
from m3el_fast.matching import Matcher, Role, Side
from m3el_fast.models import MELModel

_WORDS: dict[Role, str] = {"mention": "queries", "entity": "documents"}


@dataclass(frozen=True, eq=False)
class Encoded:
    """n distinct queries or n distinct documents.

    Attributes:
        matcher: of the model that encoded them.
        role: which of the two they are, ``mention`` or ``entity``.
        side: all that scoring needs of them, with an ``image_index``, on the matcher's device.
    """

    matcher: Matcher
    role: Role
    side: Side


@torch.inference_mode()
def encode(
    model: MELModel, items: Sequence[Item], role: Role, batch_size: int, progress: bool = False
) -> tuple[Encoded, Tensor]:
    """Encode at least one query (``mention``) or document (``entity``) with the weights as they are now, in fp32 also
    under autocast.

    Each distinct text (as the model reads it: what it cuts off does not count) and each distinct picture goes through
    its tower once, ``batch_size`` at a time, so that equal items have bitwise equal features.

    Returns:
        The distinct items, and the row of each of ``items`` among them, [n] int64 on the CPU.

    Raises:
        InputError: a picture cannot be read, a feature is not finite (both name the item), ``batch_size`` is not
            positive, or a weight is not in float32.
    """
    if batch_size < 1:
        raise InputError("batch_size", "at least 1", batch_size)
    for dtype in {parameter.dtype for parameter in model.parameters()} - {torch.float32}:
        raise InputError("model", "weights in float32", dtype, "model.float() converts them")
    with torch.autocast(model.device.type, enabled=False):
        return _encode(model, items, role, batch_size, progress)


def _encode(
    model: MELModel, items: Sequence[Item], role: Role, batch_size: int, progress: bool
) -> tuple[Encoded, Tensor]:
    with tqdm(desc=f"encoding {_WORDS[role]}", unit="input", disable=not progress, leave=False) as bar:
        text, text_context, text_of = _encode_texts(model, items, role, batch_size, bar)
        visual, image_context, image_of = _encode_images(model, items, role, batch_size, bar)
    first, row = _distinct(list(zip(text_of.tolist(), image_of.tolist(), strict=True)))
    text_of, image_of = text_of[first], image_of[first]
    cross = [
        model.matcher.cross_part(_take(text_context, text_of[rows]), _take(image_context, image_of[rows]))
        for rows in torch.arange(len(first)).split(batch_size)
    ]
    side = Side(_take(text, text_of) | _joined(cross), visual, image_of.to(model.device))
    places = torch.tensor(first)
    _refuse_not_finite(side.item, places, items)
    _refuse_not_finite(side.visual, places[_distinct(image_of.tolist())[0]], items)  # rows are in order of first use
    return Encoded(model.matcher, role, side), row


def _encode_texts(
    model: MELModel, items: Sequence[Item], role: Role, batch_size: int, bar: tqdm[NoReturn]
) -> tuple[Vectors, Vectors, Tensor]:
    """``text.*`` of the distinct texts, their context for the cross-modal unit, and the row [n] of each item's text."""
    encoder, matcher = model.encoder, model.matcher
    first, text_of = _distinct([item.text for item in items])
    ids, mask = encoder.tokenize([items[i].text for i in first])
    first, same = _distinct([row.tobytes() for row in ids.numpy()])
    parts = []
    for rows in torch.tensor(first).split(batch_size):
        tokens, there = ids[rows].to(model.device), mask[rows].to(model.device)
        glob, local = encoder.model.text(tokens, there)
        parts.append(matcher.text_part(encoder.text_global_proj(glob), local, there.bool(), role))
        bar.update(len(rows))
    text, context = (_joined(column) for column in zip(*parts, strict=True))
    return text, context, same[text_of]


def _encode_images(
    model: MELModel, items: Sequence[Item], role: Role, batch_size: int, bar: tqdm[NoReturn]
) -> tuple[Vectors, Vectors, Tensor]:
    """``visual`` of the distinct pictures, their context, and the row [n] of each item's; "none" is one of them."""
    encoder, matcher = model.encoder, model.matcher
    # PIL compares images by their pixels
    first, image_of = _distinct([id(i.image) if isinstance(i.image, Image.Image) else i.image for i in items])
    parts: list[tuple[Vectors, Vectors]] = []
    digests: list[bytes | None] = []
    with ThreadPoolExecutor() as pool:
        for rows in torch.tensor(first).split(batch_size):
            some = [items[i] for i in rows.tolist()]
            decoded = list(pool.map(partial(pixels, size=encoder.image_size), [i for i in some if i.image is not None]))
            blank = np.empty((0, encoder.image_size, encoder.image_size, 3), dtype=np.uint8)
            there = torch.tensor([item.image is not None for item in some])
            index = (there.cumsum(0) - 1).masked_fill(~there, -1)
            batch = torch.from_numpy(np.stack(decoded) if decoded else blank)
            values, used = encoder.pixel_values(batch.to(model.device), index.to(model.device))
            glob, local = (output[used] for output in encoder.model.image(values))
            glob, local = encoder.image_global_proj(glob), encoder.image_local_proj(local)
            parts.append(matcher.image_part(glob, local, role))
            own = [hashlib.sha256(array.tobytes()).digest() for array in decoded]
            digests += [None if i < 0 else own[i] for i in index.tolist()]
            bar.update(len(rows))
    visual, context = (_joined(column) for column in zip(*parts, strict=True))
    first, same = _distinct(digests)  # two files may decode to the same pixels
    return _take(visual, torch.tensor(first)), _take(context, torch.tensor(first)), same[image_of]


def _distinct(keys: Sequence[Hashable]) -> tuple[list[int], Tensor]:
    """The place of each distinct key where it comes first, in order, and the row [n] int64 of each key among these."""
    first: dict[Hashable, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    number = {key: row for row, key in enumerate(first)}
    return list(first.values()), torch.tensor([number[key] for key in keys])


def _joined(parts: Sequence[Vectors]) -> Vectors:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _take(vectors: Vectors, rows: Tensor) -> Vectors:
    return {name: tensor[rows.to(tensor.device)] for name, tensor in vectors.items()}


def _refuse_not_finite(tensors: Vectors, places: Tensor, items: Sequence[Item]) -> None:
    """``places`` [n]: which of ``items`` each row of the tensors belongs to."""
    for name, tensor in tensors.items():
        wrong = ~tensor.flatten(1).isfinite().all(dim=1)
        if wrong.any():
            where = items[int(places[int(wrong.nonzero()[0])])].where
            raise InputError(where, "finite features", f"NaN or infinity in {name}")
