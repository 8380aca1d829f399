"""What has to be encoded so that a source's entities become a segment: nothing twice, nothing that the index has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from m3el_fast.encode import Source
from m3el_fast.index.contents import Contents
from m3el_fast.index.segment import Entities
from m3el_fast.index.store import IndexVersion

CHUNK = 2048  # distinct texts between two points where a build can go on


@dataclass(frozen=True)
class Plan:
    """The work behind one segment.

    Attributes:
        entities: of the segment; entity i is the source's item i.
        known: [n] int64, the index's row of an identical entity, whose tensors are copied; -1 = to be encoded.
        keys: [u] int64 image keys to encode (an item's context needs its image, also where the index has it).
        visual_row: [u] int64, the segment's visual row of each; -1 = the index has it.
        items: [m] int64 items of the source to encode, sorted by text, then by image; image_of: [m] int64, the place in
            ``keys`` of each.
        chunks: parts of ``items`` that are encoded one by one, so that where a build was stopped changes no batch, and
            no bit; equal texts are in one.
    """

    entities: Entities
    known: Tensor
    keys: Tensor
    visual_row: Tensor
    items: Tensor
    image_of: Tensor
    chunks: list[slice]

    @classmethod
    def of(
        cls, source: Source, found: Contents, ids: Sequence[str], names: Sequence[str], index: IndexVersion | None
    ) -> Plan:
        """The plan for a new index (None), or for a new segment of ``index``. Raises InputError as Entities."""
        unknown = torch.full((len(found.digests),), -1)
        there = unknown if index is None else index.find_images(found.digests)
        new = there < 0
        first_image = 0 if index is None else index.visual_rows
        image = torch.where(new, first_image + new.cumsum(0) - 1, there)[found.image]
        entities = Entities(ids, names, found.text_key, image, found.digests[new], first_image)
        known = torch.full((len(ids),), -1) if index is None else _identical(entities, index)
        todo = (known < 0).nonzero()[:, 0]
        part = found.take(todo)
        # every new image is that of an entity to encode
        visual_row = torch.full((len(part.keys),), -1).index_copy_(0, part.image, image[todo] - first_image)
        text = source.text_key[todo]
        by_image = part.image.argsort(stable=True)
        order = by_image[text[by_image].argsort(stable=True)]
        chunks = _chunks(text[order])
        return cls(entities, known, part.keys, visual_row.clamp_min(-1), todo[order], part.image[order], chunks)


def _chunks(text: Tensor) -> list[slice]:
    """Parts with :data:`CHUNK` distinct values each of ``text`` [m] int64, where equal ones follow each other."""
    first = torch.ones(len(text), dtype=torch.bool)
    first[1:] = text.diff() != 0
    bounds = [*first.nonzero()[::CHUNK, 0].tolist(), len(text)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _identical(entities: Entities, index: IndexVersion) -> Tensor:
    """For each entity [n] int64 a row of the index with its text and its image, -1 = none."""
    texts = entities.text_key.sort().values
    place = torch.searchsorted(texts, index.text_key).clamp_max(len(texts) - 1)
    rows = (texts[place] == index.text_key).nonzero()[:, 0]
    pairs = zip(index.text_key[rows].tolist(), index.image_index[rows].tolist(), strict=True)
    found = dict(zip(pairs, rows.tolist(), strict=True))
    wanted = zip(entities.text_key.tolist(), entities.image_index.tolist(), strict=True)
    return torch.tensor([found.get(pair, -1) for pair in wanted])
