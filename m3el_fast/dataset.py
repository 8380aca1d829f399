"""A data set made ready for one encoder: the KB and the mentions of each split as batch sources, with their golds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from m3el_fast.config import DataConfig
from m3el_fast.data.augment import kb_mentions
from m3el_fast.data.cache import ImageCache
from m3el_fast.data.layout import KnowledgeBase, Mention, entity_text, mention_text, read_kb, read_mentions
from m3el_fast.data.tokenized import TokenizedSide
from m3el_fast.encode import Source
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError

SplitName = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Split:
    """The mentions of one split whose answer is in the KB.

    Attributes:
        mentions: n records.
        source: the same as batches.
        gold: [n] int64, row of each answer in the KB.
        nil: mentions left out because their answer is nil; absent: because it is not in the KB (spec section 6).
    """

    mentions: list[Mention]
    source: Source
    gold: Tensor
    nil: int = 0
    absent: int = 0

    def describe(self) -> str:
        left_out = [f"{n} {why}" for n, why in ((self.nil, "nil"), (self.absent, "not in the KB")) if n]
        return f"{len(self.mentions)} mentions" + (f", left out: {', '.join(left_out)}" if left_out else "")


@dataclass(frozen=True)
class Dataset:
    """A KB and splits; ``images`` says how many images could not be used, or is empty."""

    kb: KnowledgeBase
    entities: Source
    splits: dict[SplitName, Split]
    images: str

    def with_sources(self, entities: Source, sources: dict[SplitName, Source]) -> Dataset:
        """The same data behind other batch sources (tower outputs in place of raw inputs)."""
        splits = {name: replace(split, source=sources[name]) for name, split in self.splits.items()}
        return replace(self, entities=entities, splits=splits)


def cache_folder() -> Path:
    """Where decoded images are kept: ``M3EL_CACHE``, else ``~/.cache/m3el_fast``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("M3EL_CACHE") or Path(base) / "m3el_fast")


def load_dataset(
    config: DataConfig, folder: Path, encoder: Encoder, splits: Iterable[SplitName], progress: bool = True
) -> Dataset:
    """Read, check, tokenise and decode (once; later calls find the image cache) what ``splits`` and the KB need.

    Raises:
        InputError: any defect of the data; with ``config.strict`` an answer outside the KB; with
            ``config.strict_images`` a missing or unreadable image.
    """
    kb = read_kb(folder, config.entity_text)
    read = {
        name: _with_gold(_mentions(config, folder, kb, name), kb.row, f"{folder}, split {name}", config.strict)
        for name in splits
    }
    paths = [path for entity in kb.entities for path in entity.images]
    paths += [m.image for mentions, *_ in read.values() for m in mentions if m.image is not None]
    cache = open_images(paths, encoder, config.strict_images, progress)
    entities = kb_source(kb, config, encoder, cache)
    ready: dict[SplitName, Split] = {}
    for name, (mentions, gold, nil, absent) in read.items():
        ready[name] = Split(mentions, mention_source(mentions, encoder, cache), gold, nil, absent)
    return Dataset(kb, entities, ready, cache.report.summary())


def load_split(
    config: DataConfig, folder: Path, encoder: Encoder, name: SplitName, row: Mapping[str, int]
) -> tuple[Split, str]:
    """One split without the KB, against entities whose ids and rows are known (those of an index), and how many of its
    images could not be used, as in :class:`Dataset`. Raises as :func:`load_dataset`.
    """
    mentions, gold, nil, absent = _with_gold(read_mentions(folder, name), row, f"{folder}, split {name}", config.strict)
    paths = [mention.image for mention in mentions if mention.image is not None]
    cache = open_images(paths, encoder, config.strict_images, progress=True)
    split = Split(mentions, mention_source(mentions, encoder, cache), gold, nil, absent)
    return split, cache.report.summary()


def open_images(paths: Sequence[Path], encoder: Encoder, strict: bool, progress: bool) -> ImageCache:
    """The decoded images at the encoder's size."""
    workers = os.cpu_count() or 1
    return ImageCache.build(
        paths, encoder.image_size, cache_folder() / "images", strict=strict, workers=workers, progress=progress
    )


def kb_source(kb: KnowledgeBase, config: DataConfig, encoder: Encoder, cache: ImageCache) -> TokenizedSide:
    texts = [entity_text(entity, config.entity_text) for entity in kb.entities]
    return TokenizedSide(texts, [entity.images for entity in kb.entities], encoder.tokenize, cache)


def mention_source(mentions: Sequence[Mention], encoder: Encoder, cache: ImageCache) -> TokenizedSide:
    images = [() if mention.image is None else (mention.image,) for mention in mentions]
    return TokenizedSide([mention_text(mention) for mention in mentions], images, encoder.tokenize, cache)


def _mentions(config: DataConfig, folder: Path, kb: KnowledgeBase, split: SplitName) -> list[Mention]:
    mentions = read_mentions(folder, split)
    if split == "train" and config.kb_mentions:
        mentions += kb_mentions(kb, config.entity_text, config.kb_mentions, seed=0)
    return mentions


def _with_gold(
    mentions: list[Mention], row: Mapping[str, int], where: str, strict: bool
) -> tuple[list[Mention], Tensor, int, int]:
    kept = [m for m in mentions if m.answer is not None and m.answer in row]
    nil = sum(m.answer is None for m in mentions)
    absent = len(mentions) - nil - len(kept)
    if strict and absent:
        first = next(m for m in mentions if m.answer is not None and m.answer not in row)
        expected = "an answer that is in kb_entity.json or nil"
        raise InputError(f"{where}, mention {first.id}", expected, f"{first.answer} ({absent} such)")
    if not kept:
        raise InputError(where, "a mention whose answer is in the KB", f"none of {len(mentions)}")
    return kept, torch.tensor([row[m.answer] for m in kept if m.answer is not None]), nil, absent
