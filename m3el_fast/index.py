"""All that scoring needs of a KB, computed once and memory-mapped in a temporary folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from m3el_fast.features import Inputs, TowerOutputs
from m3el_fast.matching import Side, Vectors
from m3el_fast.models import MELModel


class Source(Protocol):
    """One side of a data set that hands out batches: tokenised inputs, or tower outputs computed before."""

    @property
    def text_key(self) -> Tensor: ...

    @property
    def image_key(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def inputs(self, rows: Tensor, share: Tensor | None = None) -> Inputs | TowerOutputs: ...


class EntityIndex:
    """The entity side of a whole KB (spec section 5.1), visual rows once per distinct image (spec section 5.6).

    Attributes:
        side: tensors of E entities, fp32, memory-mapped.
        keys: by component, [E] int64 keys that are equal exactly where the inputs of that component are, so that
            identical entities are known to tie whatever a block's shape did to the last bit of their scores.
    """

    def __init__(self, side: Side, keys: dict[str, Tensor], folder: tempfile.TemporaryDirectory[str]) -> None:
        self.side = side
        self.keys = keys
        self._folder = folder  # removed when the index is

    def __len__(self) -> int:
        return len(self.keys["text"])

    @classmethod
    @torch.inference_mode()
    def build(cls, model: MELModel, source: Source, *, block: int = 256, progress: bool = True) -> EntityIndex:
        """Encode every entity of ``source`` in blocks; memory is bounded by the block, not by the KB.

        Raises:
            ValueError: the source is empty.
        """
        n = len(source)
        if n == 0:
            raise ValueError("source: expected at least one entity, got 0")
        image_keys, image_index = source.image_key.unique(return_inverse=True)
        folder = tempfile.TemporaryDirectory(prefix="m3el-index-")
        item: Vectors = {}
        visual: Vectors = {}
        model.eval()
        with tqdm(total=n, desc="encoding KB", unit="entity", disable=not progress, leave=False) as bar:
            for start in range(0, n, block):
                rows = torch.arange(start, min(start + block, n))
                part = model.entity_side(source.inputs(rows).to(model.device))
                own = rows - start if part.image_index is None else part.image_index.cpu()
                for name, values in part.item.items():
                    target = _mapped(item, name, n, values, folder.name)
                    target[rows] = values.to("cpu", target.dtype)
                for name, values in part.visual.items():
                    target = _mapped(visual, name, len(image_keys), values, folder.name)
                    target[image_index[rows]] = values.to("cpu", target.dtype)[own]
                bar.update(len(rows))
        keys = {"text": source.text_key, "image": image_index}
        pair = source.text_key * len(image_keys) + image_index
        return cls(Side(item, visual, image_index), keys | {"union": pair, "cross": pair}, folder)


def _mapped(tensors: Vectors, name: str, rows: int, like: Tensor, folder: str) -> Tensor:
    if name not in tensors:
        shape, dtype = (rows, *like.shape[1:]), np.bool_ if like.dtype == torch.bool else np.float32
        array = np.lib.format.open_memmap(Path(folder) / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        tensors[name] = torch.from_numpy(array)
    return tensors[name]
