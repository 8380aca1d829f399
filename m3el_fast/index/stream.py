"""An index of tensors that come from anywhere: benchmarks, tests, another encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from m3el_fast.errors import InputError
from m3el_fast.features import Vectors
from m3el_fast.index.folder import build_folder, require_space
from m3el_fast.index.layout import Layout, StoredType
from m3el_fast.index.manifest import Manifest
from m3el_fast.index.segment import Entities, SegmentWriter, segment_bytes


def write_index(
    out: Path,
    entities: Entities,
    items: Iterable[Vectors],
    visual: Iterable[Vectors],
    *,
    dtype: StoredType = "bf16",
    fingerprint: str = "",
    model: str = "m3el",
    progress: bool = True,
) -> None:
    """Write an index into the new folder ``out`` without a model; nothing is held but a block.

    Args:
        items: ``Side.item`` of all entities, in blocks, in order; visual: ``Side.visual`` of all distinct images.
        fingerprint: of the model that it shall be usable with, by :func:`m3el_fast.index.fingerprint.fingerprint`.
        model: its type, ``m3el`` or ``mimic``.

    Raises:
        InputError: as :meth:`EntityIndex.build`, or fewer or more rows than entities or images.
    """
    with build_folder(Path(out)) as folder:
        items, first = _peek(items)
        visual, first_visual = _peek(visual)
        layout = Layout.of(first, first_visual, dtype)
        require_space(folder, segment_bytes(entities, layout))
        with SegmentWriter(folder, 1, entities, layout) as writer:
            _copy("images", visual, len(entities.digests) if layout.visual else 0, writer.put_visual, progress)
            _copy("entities", items, len(entities.ids) if layout.item else 0, writer.put_items, progress)
            segment = writer.finish()
        Manifest(
            version=1,
            fingerprint=fingerprint,
            model=model,
            precision="auto",
            layout=layout,
            segments=[segment],
        ).write(folder)


def _copy(
    name: str, blocks: Iterable[Vectors], count: int, put: Callable[[Tensor, Vectors], None], progress: bool
) -> None:
    row = 0
    with tqdm(total=count, desc=f"writing {name}", unit=" rows", disable=not progress, leave=False) as bar:
        for block in blocks:
            rows = torch.arange(row, row + len(next(iter(block.values()))))
            row += len(rows)
            if row > count:
                raise InputError(name, f"{count} rows of tensors", f"{row} or more")
            put(rows, block)
            bar.update(len(rows))
    if row < count:
        raise InputError(name, f"{count} rows of tensors", row)


def _peek(blocks: Iterable[Vectors]) -> tuple[Iterator[Vectors], Vectors]:
    rest = iter(blocks)
    first = next(rest, {})
    return chain([first] if first else [], rest), first
