"""What an index keeps of the entity side: which tensors, in which type, and which of them share a row."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from m3el_fast.errors import InputError
from m3el_fast.features import Vectors
from m3el_fast.index.shards import DTYPES, Spec, spec_bytes

StoredType = Literal["bf16", "fp32"]

COARSE = "coarse"
_INNER_PRODUCTS = ("text.global", "cross.t2v", "cross.v2t")  # scored by one product of their concatenation
_STORED = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Row(BaseModel):
    """One row of a stored tensor: type (as safetensors names it) and shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    dtype: Literal["F32", "BF16", "BOOL"]
    shape: tuple[int, ...]


class Part(BaseModel):
    """A tensor's columns ``start`` to ``stop`` - 1 in ``coarse``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    start: int
    stop: int


class Layout(BaseModel):
    """The stored tensors of an index.

    Attributes:
        dtype: of what is compared token by token (``*query``) and of ``*gate``; masks are bool, all else fp32.
        item: tensors with a row for each entity, by name; visual: with a row for each distinct image.
        parts: of the item tensor ``coarse``, the concatenation of all that are scored by an inner product.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dtype: StoredType
    item: dict[str, Row]
    visual: dict[str, Row]
    parts: list[Part]

    @classmethod
    def of(cls, item: Vectors, visual: Vectors, dtype: StoredType) -> Layout:
        """The layout for tensors like these; the number of their rows does not matter."""
        if dtype not in _STORED:
            raise InputError("dtype", "bf16 or fp32", dtype)
        parts: list[Part] = []
        for name in _INNER_PRODUCTS:
            if name in item:
                start = parts[-1].stop if parts else 0
                parts.append(Part(name=name, start=start, stop=start + item[name].shape[1]))
        rows = {COARSE: Row(dtype="F32", shape=(parts[-1].stop,))} if parts else {}
        rows |= {name: _row(name, tensor, dtype) for name, tensor in item.items() if name not in _INNER_PRODUCTS}
        return cls(dtype=dtype, item=rows, visual={n: _row(n, t, dtype) for n, t in visual.items()}, parts=parts)

    def store_item(self, item: Vectors) -> Vectors:
        """Tensors of n entities as they are stored. Raises InputError where names or shapes are others."""
        item = dict(item)
        columns = [item.pop(part.name) for part in self.parts if part.name in item]
        if columns:
            item[COARSE] = torch.cat([column.float() for column in columns], dim=1)
        return _store(item, self.item)

    def store_visual(self, visual: Vectors) -> Vectors:
        """Tensors of n images as they are stored. Raises InputError where names or shapes are others."""
        return _store(visual, self.visual)

    def split(self, item: Vectors) -> Vectors:
        """Stored item tensors under the names that matching uses; views, none copied."""
        views = {name: tensor for name, tensor in item.items() if name != COARSE}
        return {part.name: item[COARSE][:, part.start : part.stop] for part in self.parts} | views

    def item_bytes(self) -> int:
        return _bytes(self.item)

    def visual_bytes(self) -> int:
        return _bytes(self.visual)


def specs(rows: dict[str, Row], count: int) -> dict[str, Spec]:
    """Types and shapes of tensors with ``count`` such rows."""
    return {name: (DTYPES[row.dtype], (count, *row.shape)) for name, row in rows.items()}


def _row(name: str, tensor: Tensor, dtype: StoredType) -> Row:
    narrow = dtype == "bf16" and name.endswith(("query", "gate"))
    kind: Literal["F32", "BF16", "BOOL"] = "BOOL" if tensor.dtype == torch.bool else "BF16" if narrow else "F32"
    return Row(dtype=kind, shape=tuple(tensor.shape[1:]))


def _store(tensors: Vectors, rows: dict[str, Row]) -> Vectors:
    if tensors.keys() != rows.keys():
        raise InputError("features", f"the tensors {', '.join(sorted(rows))}", ", ".join(sorted(tensors)) or "none")
    stored = {}
    for name, row in rows.items():
        if tuple(tensors[name].shape[1:]) != row.shape:
            expected = f"rows of shape {list(row.shape)}, as in the index"
            raise InputError(f"features, {name}", expected, list(tensors[name].shape[1:]))
        stored[name] = tensors[name].to("cpu", DTYPES[row.dtype])
    return stored


def _bytes(rows: dict[str, Row]) -> int:
    return sum(spec_bytes(spec) for spec in specs(rows, 1).values())
