"""Encoding a KB: the entity side of every entity, each distinct text and each distinct image through its tower once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from m3el_fast.encoder.packed import pack, share
from m3el_fast.features import ImageOutputs, Images, Inputs, TextOutputs, Texts, TowerOutputs, Vectors
from m3el_fast.models import MELModel

Precision = Literal["auto", "fp32", "bf16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Key = TypeVar("Key")
Loaded = TypeVar("Loaded")

_BATCH = {"cpu": 32, "cuda": 512}  # texts or images of one pass; on a CPU their activations stay in its caches
_AHEAD = 2  # batches that are read while another is computed


class Source(Protocol):
    """One side of a data set that hands out batches: tokenised inputs, or tower outputs computed before.

    Attributes:
        text_key: [n] int64, equal exactly where texts are.
        image_key: [n] int64, equal exactly where evaluation images are, -1 = none.
    """

    @property
    def text_key(self) -> Tensor: ...

    @property
    def image_key(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def inputs(self, rows: Tensor, share: Tensor | None = None) -> Inputs | TowerOutputs: ...

    def texts(self, rows: Tensor) -> Texts | TextOutputs:
        """The texts of the items ``rows`` [b] int64. Called from a thread."""
        ...

    def images(self, keys: Tensor) -> Images | ImageOutputs:
        """The images ``keys`` [u] int64, values of ``image_key``. Called from a thread."""
        ...


class KBEncoder:
    """The entity side of a model for the items of a source, in pieces: first the images, then the items.

    The numbers are those of ``model.entity_side(source.inputs(rows))`` up to rounding, with the weights that the model
    has at construction. Memory is bounded by a batch.

    Args:
        model: may be in training mode, and stays so.
        source: the KB's entities.
        precision: of the towers' matrix products; all else is fp32. ``auto``: bf16 where the hardware multiplies it
            faster than fp32, else fp32.

    Attributes:
        precision: the one that is used, ``fp32`` or ``bf16``.
    """

    def __init__(self, model: MELModel, source: Source, *, precision: Precision = "auto") -> None:
        self.source = source
        self._encoder, self._matcher, self._device = model.encoder, model.matcher, model.device
        packable = self._device.type == "cpu" and torch.backends.mkldnn.is_available()
        if precision == "auto":
            # CPUs with AMX have AVX512-BF16 too
            fast = torch.cpu._is_avx512_bf16_supported() if packable else self._device.type == "cuda"
            precision = "bf16" if fast else "fp32"
        self.precision = precision
        towers = self._encoder.model
        self._towers = pack(towers, _DTYPES[precision]) if packable else share(towers)
        self._autocast = precision == "bf16" and not packable
        self._batch = _BATCH[self._device.type]

    @torch.inference_mode()
    def images(self, keys: Tensor, start: int = 0) -> Iterator[tuple[slice, Vectors, Vectors]]:
        """Encode images in their order.

        Args:
            keys: [u] int64 distinct values of ``source.image_key``, -1 = no image.
            start: the first to encode.

        Yields:
            Which of ``keys``; ``visual`` of :class:`Side` for them; what :meth:`items` needs of them as context.
            Both dicts are empty for a model that reads no images.
        """
        pieces = _pieces(start, len(keys), self._batch)
        if self._matcher.image is None and self._matcher.cross is None:
            yield from ((piece, {}, {}) for piece in pieces)
            return
        for piece, images in _prefetch(pieces, lambda piece: self.source.images(keys[piece])):
            glob, local = self._image_outputs(images)
            glob, local = self._encoder.image_global_proj(glob), self._encoder.image_local_proj(local)
            yield piece, *self._matcher.image_part(glob, local, "entity")

    @torch.inference_mode()
    def items(
        self, rows: Tensor, image_of: Tensor, context: Callable[[Tensor], Vectors], start: int = 0
    ) -> Iterator[tuple[slice, Vectors]]:
        """Encode items in their order.

        A run of equal texts goes through the tower once, and a run of items that are equal in text and image through
        the cross-modal unit once (so that they are bitwise equal): sort ``rows`` by text, then by image.

        Args:
            rows: [n] int64 rows of the source.
            image_of: [n] int64, the place of each item's image in the ``keys`` of :meth:`images`.
            context: places [b] int64 -> context [b, ...] of those images, as :meth:`images` gave it.
            start: the first item to encode.

        Yields:
            Which of ``rows``; ``item`` of :class:`Side` for them.
        """
        if self._matcher.text is None and self._matcher.cross is None:
            yield from ((piece, {}) for piece in _pieces(start, len(rows), self._batch))
            return
        rows, image_of = rows[start:], image_of[start:]
        keys = self.source.text_key[rows]
        texts, pairs = _Runs(keys), _Runs(keys, image_of)
        read = _prefetch(_pieces(0, len(texts), self._batch), lambda piece: self.source.texts(rows[texts.first[piece]]))
        for piece, batch in read:
            text, text_context = self._text_part(batch)
            whole = texts.items(piece)
            for some in _pieces(int(pairs.of[whole.start]), int(pairs.of[whole.stop - 1]) + 1, self._batch):
                first = pairs.first[some]
                own = texts.of[first] - piece.start
                vectors = _take(text, own)
                if self._matcher.cross is not None:
                    image = {k: v.to(self._device) for k, v in context(image_of[first]).items()}
                    vectors |= self._matcher.cross_part(_take(text_context, own), image)
                equals = pairs.items(some)
                for part in _pieces(equals.start, equals.stop, self._batch):
                    yield slice(start + part.start, start + part.stop), _take(vectors, pairs.of[part] - some.start)

    def _text_part(self, batch: Texts | TextOutputs) -> tuple[Vectors, Vectors]:
        first, second, *rest = (tensor.to(self._device, non_blocking=True) for tensor in batch)
        if isinstance(batch, Texts):
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
                glob, local = self._towers.text(first, second)
            mask = second
        else:
            glob, local, mask = first, second, *rest
        glob = self._encoder.text_global_proj(glob.float())
        return self._matcher.text_part(glob, local.float(), mask.bool(), "entity")

    def _image_outputs(self, batch: Images | ImageOutputs) -> tuple[Tensor, Tensor]:
        first, second = (tensor.to(self._device, non_blocking=True) for tensor in batch)
        if isinstance(batch, ImageOutputs):
            return first, second
        pixel_values, index = self._encoder.pixel_values(first, second)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            glob, local = self._towers.image(pixel_values)
        return glob[index].float(), local[index].float()


class _Runs:
    """Runs of items that are equal in all of some keys, [n] each.

    Attributes:
        of: [n] int64, the run of each item.
        first: [runs] int64, the first item of each run.
    """

    def __init__(self, *keys: Tensor) -> None:
        new = torch.zeros(len(keys[0]), dtype=torch.bool)
        new[:1] = True
        for key in keys:
            new[1:] |= key[1:] != key[:-1]
        self.of = new.cumsum(0) - 1
        self.first = new.nonzero()[:, 0]

    def __len__(self) -> int:
        return len(self.first)

    def items(self, runs: slice) -> slice:
        """The items of those runs."""
        stop = len(self.of) if runs.stop == len(self.first) else int(self.first[runs.stop])
        return slice(int(self.first[runs.start]), stop)


def _pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _take(vectors: Vectors, rows: Tensor) -> Vectors:
    """Rows of each tensor; the tensors themselves where that is all of them in order."""
    if all(torch.equal(rows, torch.arange(len(tensor))) for tensor in vectors.values()):
        return dict(vectors)
    return {name: tensor[rows.to(tensor.device)] for name, tensor in vectors.items()}


def _prefetch(keys: Iterable[Key], load: Callable[[Key], Loaded]) -> Iterator[tuple[Key, Loaded]]:
    """Each key with what ``load`` gives for it, loaded in a thread a few keys ahead."""
    waiting: deque[tuple[Key, Future[Loaded]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for key in keys:
            waiting.append((key, thread.submit(load, key)))
            if len(waiting) > _AHEAD:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
