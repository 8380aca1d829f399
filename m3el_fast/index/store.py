"""One version of an entity index, memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from m3el_fast.errors import InputError
from m3el_fast.features import Vectors
from m3el_fast.index.fingerprint import fingerprint
from m3el_fast.index.layout import Layout, Row, specs
from m3el_fast.index.lookup import find
from m3el_fast.index.manifest import File, Manifest
from m3el_fast.index.segment import id_keys
from m3el_fast.index.shards import Shard
from m3el_fast.index.strings import Strings
from m3el_fast.models import MELModel


@dataclass(frozen=True)
class EntityBlock:
    """The rows ``start`` to ``stop`` - 1 of an index.

    Attributes:
        item: tensors [n, ...] by the names that matching uses; views of the mapped file.
        image_index: [n] int64 visual rows.
        live: [n] bool, False = removed.
    """

    start: int
    stop: int
    item: Vectors
    image_index: Tensor
    live: Tensor


class OpenSegment:
    """The two files of a segment.

    Attributes:
        start, visual_start: its first rows in the index.
        stored, visual: the layout's tensors.
        item: ``stored`` under the names that matching uses.
    """

    def __init__(self, items: Vectors, visual: Vectors, layout: Layout, start: int, visual_start: int) -> None:
        self.start, self.visual_start = start, visual_start
        self.stored = {name: items[name] for name in layout.item}
        self.item = layout.split(self.stored)
        self.visual = {name: visual[name] for name in layout.visual}
        self.image_index, self.text_key = items["entity.image_index"], items["entity.text_key"]
        self.ids = items["entity.ids"], items["entity.ids_at"]
        self.names = items["entity.names"], items["entity.names_at"]
        self.id_table = items["entity.id_key"], items["entity.id_row"]
        self.digest, self.image_table = visual["image.digest"], (visual["image.key"], visual["image.row"])

    def __len__(self) -> int:
        return len(self.text_key)


class IndexVersion:
    """What is on the disk, as it was when it was opened; later versions leave its files alone.

    Rows are numbered in the order in which entities were added, and removed ones keep theirs. No tensor may be written
    to: they are maps of read-only files.

    Attributes:
        path: the folder; manifest: of this version.
        rows: number of rows, of removed entities too; visual_rows: of distinct images.
        live: [rows] bool, False = removed.
        ids, names: of all rows, decoded when asked for.
        image_index: [rows] int64, the visual row of each.
        text_key: [rows] int64, equal exactly where texts (token ids) are.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.rows, self.visual_rows = manifest.rows, manifest.visual_rows
        self.segments: list[OpenSegment] = []
        row = visual_row = 0
        for entry in manifest.segments:
            items = self._open(entry.items, manifest.layout.item, entry.rows)
            visual = self._open(entry.visual, manifest.layout.visual, entry.visual_rows)
            self.segments.append(OpenSegment(items, visual, manifest.layout, row, visual_row))
            row, visual_row = row + entry.rows, visual_row + entry.visual_rows
        self.live = torch.ones(self.rows, dtype=torch.bool)
        for removal in manifest.removals:
            self.live[self._open(removal.file, {}, 0)["rows"]] = False
        self.ids = Strings([segment.ids for segment in self.segments])
        self.names = Strings([segment.names for segment in self.segments])

    def _open(self, file: File, rows: Mapping[str, Row], count: int) -> Vectors:
        path = self.path / file.name
        if path.exists() and path.stat().st_size != file.bytes:
            hint = "Restore the index from a copy, or build it again"
            raise InputError(path, f"{file.bytes:,} bytes", f"{path.stat().st_size:,}", hint)
        tensors = Shard(path).tensors
        for name, spec in specs(dict(rows), count).items():
            found = (tensors[name].dtype, tuple(tensors[name].shape)) if name in tensors else "none"
            if found != spec:
                raise InputError(f"{path}, {name}", f"a tensor {spec[0]} {list(spec[1])}", found)
        return tensors

    def __len__(self) -> int:
        return self.rows - self.manifest.removed

    @cached_property
    def image_index(self) -> Tensor:
        return _joined([segment.image_index for segment in self.segments])

    @cached_property
    def text_key(self) -> Tensor:
        return _joined([segment.text_key for segment in self.segments])

    @cached_property
    def union_key(self) -> Tensor:
        """[rows] int64, equal exactly where entities are identical: the same text and the same image."""
        text: Tensor = self.text_key.unique(return_inverse=True)[1]
        return text * self.visual_rows + self.image_index

    @cached_property
    def row(self) -> Mapping[str, int]:
        """The row of each live id. All ids are decoded for it; :meth:`find` does without."""
        return {one: row for row, (one, live) in enumerate(zip(self.ids, self.live.tolist(), strict=True)) if live}

    def find(self, ids: Sequence[str]) -> Tensor:
        """The live rows [n] int64 of n ids, -1 where there is none; reads in proportion to n, not to the index."""
        place_of = {one: place for place, one in enumerate(dict.fromkeys(ids))}  # many are asked for more than once
        distinct = list(place_of)
        rows = torch.full((len(distinct),), -1)
        wanted = id_keys(distinct)
        for segment in self.segments:
            place, own = find(segment.id_table, wanted)
            row = segment.start + own
            same = [one == distinct[i] for one, i in zip(self.ids.gather(row), place.tolist(), strict=True)]
            valid = self.live[row] & torch.tensor(same, dtype=torch.bool)
            rows[place[valid]] = row[valid]
        return rows[torch.tensor([place_of[one] for one in ids], dtype=torch.int64)]

    def find_images(self, digests: Tensor) -> Tensor:
        """The visual rows [u] int64 of the images with ``digests`` [u, 2] int64, -1 where the index has none."""
        rows = torch.full((len(digests),), -1)
        for segment in self.segments:
            place, own = find(segment.image_table, digests[:, 0])
            same = (segment.digest[own] == digests[place]).all(dim=1)
            rows[place[same]] = segment.visual_start + own[same]
        return rows

    def blocks(self, size: int) -> Iterator[EntityBlock]:
        """All rows, in blocks of up to ``size``; a block never straddles two files."""
        for segment in self.segments:
            for first in range(0, len(segment), size):
                own = slice(first, min(first + size, len(segment)))
                rows = slice(segment.start + own.start, segment.start + own.stop)
                item = {name: tensor[own] for name, tensor in segment.item.items()}
                yield EntityBlock(rows.start, rows.stop, item, segment.image_index[own], self.live[rows])

    def items(self, rows: Tensor) -> Iterator[tuple[slice, Vectors, Tensor]]:
        """Where the entities ``rows`` [n] int64, ascending, are: for each file the part of ``rows`` that lies in it,
        the file's item tensors (not gathered) and the rows in them.
        """
        for segment in self.segments:
            places = _within(rows, segment.start, len(segment))
            if places.stop > places.start:
                yield places, segment.item, rows[places] - segment.start

    def stored(self, rows: Tensor) -> Iterator[tuple[slice, Vectors, Tensor]]:
        """As :meth:`items`, with the item tensors as they are stored."""
        for segment in self.segments:
            places = _within(rows, segment.start, len(segment))
            if places.stop > places.start:
                yield places, segment.stored, rows[places] - segment.start

    def visual(self, rows: Tensor) -> Iterator[tuple[slice, Vectors, Tensor]]:
        """As :meth:`items`, for the distinct images ``rows``."""
        for segment in self.segments:
            places = _within(rows, segment.visual_start, len(segment.digest))
            if places.stop > places.start:
                yield places, segment.visual, rows[places] - segment.visual_start

    def check(self, model: MELModel) -> None:
        """Raises InputError where the index was built with another model, or with other weights."""
        own = fingerprint(model)
        if own != self.manifest.fingerprint:
            expected = f"an index of this model ({model.config.model.type}, {own[:12]})"
            got = f"one of another ({self.manifest.model}, {self.manifest.fingerprint[:12]})"
            raise InputError(self.path, expected, got, "Build it again with this checkpoint")


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _within(rows: Tensor, start: int, count: int) -> slice:
    first, last = torch.searchsorted(rows, torch.tensor([start, start + count])).tolist()
    return slice(first, last)
