"""The entities of an index where they are scored: mapped on a CPU, resident on a GPU, or streamed to it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from m3el_fast.features import Vectors
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Side
from m3el_fast.scoring.memory import fits, free_bytes
from m3el_fast.scoring.upload import Upload, host_memory

_STAGED = 1 << 28  # bytes that are copied to a GPU at a time
_GATHERED = 1 << 30  # bytes of images that are copied within it at a time

Gathered = Iterator[tuple[slice, Vectors, Tensor]]
"""As :meth:`EntityIndex.items`: parts of the rows asked for, tensors that hold them, and the rows in these."""


@dataclass(frozen=True)
class Block:
    """The entities ``start`` to ``stop`` - 1 of an index, on the device that scores them.

    Attributes:
        item: tensors [n, ...] by the names that matching uses.
        images: [u] int64, the distinct visual rows, ascending; place: [n] int64, each entity's among them.
        visual: where these images are, in their order: tensors and the rows in them, None = all.
    """

    start: int
    stop: int
    item: Vectors
    images: Tensor
    place: Tensor
    visual: list[tuple[Vectors, Tensor | None]]


class Mapped:
    """The index's files themselves; nothing is copied.

    Attributes:
        live, image_index: the index's, where the entities are.
    """

    def __init__(self, index: EntityIndex) -> None:
        self._index = index
        self.live, self.image_index = index.live, index.image_index

    def blocks(self, size: int, names: Collection[str] | None = None) -> Iterator[Block]:
        """All rows, removed ones too, in blocks of at most ``size``.

        Args:
            names: of the tensors of ``item`` and ``visual`` that are needed, None = all; others may be there too.
        """
        for block in self._index.blocks(size):
            images, place = distinct_rows(block.image_index)
            visual: list[tuple[Vectors, Tensor | None]]
            visual = [(tensors, local) for _, tensors, local in self._index.visual(images)]
            yield Block(block.start, block.stop, block.item, images, place, visual)

    def items(self, rows: Tensor) -> Gathered:
        """Where the entities ``rows`` [n] int64, ascending, are."""
        return self._index.items(rows)

    def visual(self, rows: Tensor) -> Gathered:
        """Where the distinct images ``rows`` [n] int64, ascending, are."""
        return self._index.visual(rows)


class Streamed:
    """Copied for every scan: while a block is scored, a thread reads the next one and sends it.

    Attributes: as those of :class:`Mapped`.
    """

    def __init__(self, index: EntityIndex, device: torch.device) -> None:
        self._index, self._device = index, device
        self.live, self.image_index = index.live.to(device), index.image_index.to(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._most = max(1, _STAGED // sum(_row_bytes(index)))

    def blocks(self, size: int, names: Collection[str] | None = None) -> Iterator[Block]:
        """As :meth:`Mapped.blocks`. For plain loops: one that is left half-way drops this, and so ends the thread; a
        comprehension or a variable would be kept by an exception's traceback."""
        coming: Future[Callable[[], Block]] | None = None
        with ThreadPoolExecutor(1) as reader:
            for start, stop in _spans(self._index.rows, min(size, self._most)):
                current, coming = coming, reader.submit(self._send, start, stop, names)
                if current is not None:
                    yield current.result()()
            if coming is not None:
                yield coming.result()()

    def items(self, rows: Tensor) -> Gathered:
        """As :meth:`Mapped.items`, rows on the device."""
        return self._fetch(self._index.items, rows)

    def visual(self, rows: Tensor) -> Gathered:
        """As :meth:`Mapped.visual`, rows on the device."""
        return self._fetch(self._index.visual, rows)

    def _send(self, start: int, stop: int, names: Collection[str] | None) -> Callable[[], Block]:
        """Read a block and send it; what is returned receives it."""
        plan = _plan(self._index.image_index[start:stop], self._device)
        item = _side_by_side(self._index.items, torch.arange(start, stop), self._device, names)
        visual = _side_by_side(self._index.visual, plan["images"], self._device, names)
        upload = Upload([plan, item, visual], self._device, self._stream)

        def receive() -> Block:
            plan, item, visual = upload.arrive()
            return Block(start, stop, item, **plan, visual=[(visual, None)])

        return receive

    def _fetch(self, read: Callable[[Tensor], Gathered], rows: Tensor) -> Gathered:
        distinct, local = rows.unique_consecutive(return_inverse=True)
        tensors = _side_by_side(read, distinct.cpu(), self._device)
        yield slice(0, len(rows)), {n: t.to(self._device, non_blocking=True) for n, t in tensors.items()}, local


class Resident:
    """Copied once, whole.

    Attributes: as those of :class:`Mapped`.
    """

    def __init__(self, index: EntityIndex, device: torch.device) -> None:
        self._index, self._device = index, device
        self.live, self.image_index = index.live.to(device), index.image_index.to(device)
        item, visual = _row_bytes(index)
        self._most = max(1, _GATHERED // max(1, visual))
        bar = tqdm(total=_bytes(index), desc=f"index to {device}", unit="B", unit_scale=True, delay=2, leave=False)
        with bar:  # seen only where it takes more than two seconds
            self._item = self._copy(index.items, index.rows, item, bar)
            self._visual = self._copy(index.visual, index.visual_rows, visual, bar)

    def blocks(self, size: int, names: Collection[str] | None = None) -> Iterator[Block]:
        """As :meth:`Mapped.blocks`."""
        needed = _named(self._visual, names)
        for start, stop in _spans(self._index.rows, min(size, self._most)):
            plan = _plan(self._index.image_index[start:stop], self._device)
            plan = {name: part.to(self._device, non_blocking=True) for name, part in plan.items()}
            item = {name: tensor[start:stop] for name, tensor in self._item.items()}
            yield Block(start, stop, item, **plan, visual=[(_rows(needed, plan["images"]), None)])

    def items(self, rows: Tensor) -> Gathered:
        """As :meth:`Mapped.items`, rows on the device."""
        return self._fetch(self._item, rows)

    def visual(self, rows: Tensor) -> Gathered:
        """As :meth:`Mapped.visual`, rows on the device."""
        return self._fetch(self._visual, rows)

    def side(self) -> Side:
        """All of them."""
        return Side(self._item, self._visual, self.image_index)

    def _fetch(self, tensors: Vectors, rows: Tensor) -> Gathered:
        distinct, local = rows.unique_consecutive(return_inverse=True)
        yield slice(0, len(rows)), _rows(tensors, distinct), local

    def _copy(self, read: Callable[[Tensor], Gathered], count: int, row_bytes: int, bar: tqdm[NoReturn]) -> Vectors:
        whole: Vectors = {}
        for start, stop in _spans(count, max(1, _STAGED // max(1, row_bytes))):
            for name, part in _side_by_side(read, torch.arange(start, stop), self._device).items():
                if name not in whole:
                    whole[name] = torch.empty((count, *part.shape[1:]), dtype=part.dtype, device=self._device)
                whole[name][start:stop].copy_(part)
            bar.update((stop - start) * row_bytes)
        return whole


Entities = Mapped | Resident | Streamed


def entities_on(device: torch.device, index: EntityIndex) -> Entities:
    """The entities of ``index`` for scoring on ``device``."""
    if device.type == "cpu":
        return Mapped(index)
    if device.type == "cuda" and fits(_bytes(index), free_bytes(device)):
        with suppress(torch.OutOfMemoryError):  # another process was faster, or memory is in pieces
            return Resident(index, device)
    return Streamed(index, device)


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values of ``rows`` [n] int64, ascending, and the place of each row among them.

    As ``unique(return_inverse=True)`` without its sort, which costs a third of a scan with one mention.
    """
    low = int(rows.min())
    shifted = rows - low
    seen = torch.zeros(int(shifted.max()) + 1, dtype=torch.bool)
    seen[shifted] = True
    distinct = seen.nonzero()[:, 0]
    place = torch.empty(len(seen), dtype=torch.int64)
    place[distinct] = torch.arange(len(distinct))
    return distinct + low, place[shifted]


def _spans(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _side_by_side(
    read: Callable[[Tensor], Gathered], rows: Tensor, device: torch.device, names: Collection[str] | None = None
) -> Vectors:
    """The tensors ``names`` (None = all) of ``rows`` [n] int64, ascending, in memory that is fast to copy to
    ``device``."""
    whole: Vectors = {}
    for places, tensors, local in read(rows):
        for name, tensor in _named(tensors, names).items():
            if name not in whole:
                whole[name] = host_memory((len(rows), *tensor.shape[1:]), tensor.dtype, device)
            torch.index_select(tensor, 0, local, out=whole[name][places])
    return whole


def _plan(rows: Tensor, device: torch.device) -> Vectors:
    """``images`` and ``place`` of :class:`Block` for image rows [n], in memory that is fast to copy to ``device``."""
    plan = zip(("images", "place"), distinct_rows(rows), strict=True)
    return {name: host_memory(tuple(t.shape), t.dtype, device).copy_(t) for name, t in plan}


def _named(tensors: Vectors, names: Collection[str] | None) -> Vectors:
    return {name: tensor for name, tensor in tensors.items() if names is None or name in names}


def _rows(tensors: Vectors, rows: Tensor) -> Vectors:
    return {name: tensor[rows] for name, tensor in tensors.items()}


def _row_bytes(index: EntityIndex) -> tuple[int, int]:
    """What an entity takes, and what a distinct image does."""
    first = torch.zeros(1, dtype=torch.int64)
    (_, item, _), (_, visual, _) = next(index.items(first)), next(index.visual(first))
    return _width(item), _width(visual)


def _width(tensors: Vectors) -> int:
    return sum(tensor[0].numel() * tensor.element_size() for tensor in tensors.values())


def _bytes(index: EntityIndex) -> int:
    item, visual = _row_bytes(index)
    return index.rows * item + index.visual_rows * visual
