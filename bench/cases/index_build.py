"""Building an index from tower outputs that are in memory: the matcher's entity side, and its way to the disk."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bench.features import SyntheticKB, synthetic_model
from bench.machine import median_seconds
from bench.memory import peak_memory
from m3el_fast.encode import KBEncoder
from m3el_fast.features import ImageOutputs, TextOutputs, Vectors
from m3el_fast.index import EntityIndex

_CHECKED = 8  # entities that are compared with the model's entity side
_CHUNK = 1 << 24  # bytes of a plain write


class HeldKB(SyntheticKB):
    """As its base, with all tower outputs in memory (about 100 kB an entity), so that handing them out costs a copy."""

    @cached_property
    def _texts(self) -> TextOutputs:
        return super().texts(self.text_key)

    @cached_property
    def _images(self) -> ImageOutputs:
        return super().images(self._keys)

    @cached_property
    def _keys(self) -> Tensor:
        """[u] int64, ascending."""
        keys: Tensor = self.image_key.unique()
        return keys

    def texts(self, rows: Tensor) -> TextOutputs:
        return TextOutputs(*(tensor[rows] for tensor in self._texts))

    def images(self, keys: Tensor) -> ImageOutputs:
        places = torch.searchsorted(self._keys, keys)
        return ImageOutputs(*(tensor[places] for tensor in self._images))


class Build:
    """Indexes of ``entities`` entities of M3EL, each in a folder of its own below ``folder``, removed at the end."""

    def __init__(self, entities: int, folder: str) -> None:
        torch.set_grad_enabled(False)
        self.model, self.kb = synthetic_model("m3el"), HeldKB(entities)
        self._folder = tempfile.TemporaryDirectory(dir=folder, prefix="build-")
        self._built = 0

    def verify(self) -> None:
        """What is stored is the entity side by the model, up to bf16, and as it was written."""
        self.run()
        index, rows = EntityIndex.open(self._last()), torch.arange(_CHECKED)
        index.verify(progress=False)
        side = self.model.entity_side(self.kb.inputs(rows))
        (_, item, _), (_, visual, _) = next(index.items(rows)), next(index.visual(index.image_index[rows].unique()))
        assert side.image_index is not None
        _check({name: tensor[rows] for name, tensor in item.items()}, side.item)
        _check(
            {name: tensor[index.image_index[rows]] for name, tensor in visual.items()},
            {name: tensor[side.image_index] for name, tensor in side.visual.items()},
        )

    def run(self) -> None:
        self._built += 1
        EntityIndex.build(self.model, self.kb, self._last(), progress=False)

    def encode_seconds(self, rounds: int) -> float:
        """Median seconds of the entity side alone, in the batches that a build encodes."""
        return median_seconds(self._encode, rounds)

    def peak(self) -> int:
        """Bytes of one more build, beside the tower outputs."""
        return peak_memory(self.run)

    def size(self) -> int:
        """Bytes of the last index's files."""
        return sum(file.stat().st_size for file in self._last().iterdir())

    def write_seconds(self, rounds: int) -> float:
        """Median seconds of writing the bytes of the last index into one file, until they are on the disk."""
        data = b"".join(file.read_bytes() for file in sorted(self._last().glob("*.safetensors")))
        target, seconds = Path(self._folder.name) / "plain", []
        for _ in range(rounds + 1):  # the first is the warm-up
            target.unlink(missing_ok=True)
            start = time.perf_counter()
            with target.open("wb", buffering=0) as file:
                for first in range(0, len(data), _CHUNK):
                    file.write(memoryview(data)[first : first + _CHUNK])
                os.fsync(file.fileno())
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])

    def _encode(self) -> None:
        encoder = KBEncoder(self.model, self.kb, precision="fp32")
        keys, image_of = self.kb.image_key.unique(return_inverse=True)
        pieces = [context for *_, context in encoder.images(keys)]
        contexts = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

        def context(places: Tensor) -> Vectors:
            return {name: tensor[places] for name, tensor in contexts.items()}

        for _ in encoder.items(self.kb.text_key, image_of, context):
            pass

    def _last(self) -> Path:
        return Path(self._folder.name) / str(self._built)


def _check(found: Vectors, expected: Vectors) -> None:
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 4e-3 * tensor.norm(), name
