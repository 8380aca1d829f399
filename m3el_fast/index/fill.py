"""Encoding what a plan asks for straight into a segment's files, so that it can go on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from m3el_fast.encode import KBEncoder
from m3el_fast.features import Vectors
from m3el_fast.index.layout import Layout, StoredType
from m3el_fast.index.plan import Plan
from m3el_fast.index.segment import SegmentWriter
from m3el_fast.index.shards import Shard, ShardWriter, Spec

SAVE_SECONDS = 10.0


@dataclass
class Done:
    """How many of a plan's ``keys`` and ``items`` are encoded and on the disk."""

    images: int = 0
    items: int = 0


@dataclass(frozen=True)
class Shapes:
    """What one image and one item give, found by encoding the first of each.

    Attributes:
        layout: of the tensors that are kept; context: of those that the items need of an image.
    """

    layout: Layout
    context: dict[str, Spec]

    @classmethod
    def of(cls, encoder: KBEncoder, plan: Plan, dtype: StoredType) -> Shapes:
        _, visual, context = next(encoder.images(plan.keys[plan.image_of[:1]]))
        first = torch.zeros(1, dtype=torch.int64)
        _, item = next(encoder.items(plan.items[:1], first, lambda places: _take(context, places)))
        specs = {name: (tensor.dtype, (len(plan.keys), *tensor.shape[1:])) for name, tensor in context.items()}
        return cls(Layout.of(item, visual, dtype), specs)


def fill(
    encoder: KBEncoder,
    plan: Plan,
    writer: SegmentWriter,
    context: ShardWriter,
    done: Done,
    save: Callable[[Done], None],
    progress: bool,
) -> None:
    """Encode images, then items, from ``done`` on.

    Args:
        save: called now and then, and at the end, with what is on the disk.

    Raises:
        InputError: a feature is not finite.
    """
    saver = _Saver(writer, context, done, save)
    shown: dict[str, Any] = {"disable": not progress, "leave": False}
    with tqdm(total=len(plan.keys), initial=done.images, unit="image", desc="encoding images", **shown) as bar:
        for piece, visual, needed in encoder.images(plan.keys, done.images):
            rows = plan.visual_row[piece]
            new = rows >= 0
            writer.put_visual(rows[new], {name: tensor.cpu()[new] for name, tensor in visual.items()})
            for name, tensor in needed.items():
                context.put(name, torch.arange(piece.start, piece.stop), tensor.cpu())
            bar.update(piece.stop - piece.start)
            saver.step(images=piece.stop)
    held = Shard(context.path).tensors
    with tqdm(total=len(plan.items), initial=done.items, unit="entity", desc="encoding entities", **shown) as bar:
        for chunk in plan.chunks:
            if chunk.start < done.items:
                continue
            rows = plan.items[chunk]
            for piece, item in encoder.items(rows, plan.image_of[chunk], lambda places: _take(held, places)):
                writer.put_items(rows[piece], item)
                bar.update(piece.stop - piece.start)
            saver.step(items=chunk.stop)
    saver.save()


def _take(vectors: Vectors, rows: Tensor) -> Vectors:
    return {name: tensor[rows.to(tensor.device)] for name, tensor in vectors.items()}


class _Saver:
    """Saves what is done every few seconds, after it is on the disk."""

    def __init__(self, writer: SegmentWriter, context: ShardWriter, done: Done, save: Callable[[Done], None]) -> None:
        self.writer, self.context, self.done, self._save = writer, context, done, save
        self._saved = time.monotonic()

    def step(self, **done: int) -> None:
        vars(self.done).update(done)
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        self.writer.sync()
        self.context.sync()
        self._save(self.done)
        self._saved = time.monotonic()
