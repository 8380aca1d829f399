"""An index of random tensors at any sizes, for benchmarks and tests that need no meaning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from m3el_fast.features import Vectors
from m3el_fast.index.layout import StoredType
from m3el_fast.index.segment import Entities
from m3el_fast.index.stream import write_index

_BLOCK = 512


@dataclass(frozen=True)
class Sizes:
    """Counts and widths, named as in spec section 1; the defaults are the paper's, for M3EL on WikiMEL.

    Attributes:
        entities: n; images: distinct ones, u.
    """

    entities: int
    images: int
    dt: int = 512
    dv: int = 96
    d: int = 96
    text_tokens: int = 40
    image_tokens: int = 50


def write_random_index(
    out: Path, sizes: Sizes, seed: int = 0, *, dtype: StoredType = "bf16", fingerprint: str = "", progress: bool = True
) -> None:
    """Write an index of standard normal tensors into the new folder ``out``; all texts differ, images are drawn.

    Raises:
        InputError: as :func:`write_index`.
    """
    n, u, d = sizes.entities, sizes.images, sizes.d
    item = {
        "text.global": (sizes.dt,),
        "text.query": (sizes.text_tokens, d),
        "text.gate": (d,),
        "cross.t2v": (d,),
        "cross.v2t": (d,),
    }
    visual = {"global": (sizes.dv,), "query": (sizes.image_tokens, d), "gate": (d,)}
    index = torch.cat([torch.arange(u), torch.randint(0, u, (max(0, n - u),), generator=_generator(seed))])[:n]
    keys = torch.arange(u)
    entities = Entities(
        [f"Q{row}" for row in range(n)],
        [f"entity {row}" for row in range(n)],
        torch.arange(n),
        index,
        torch.stack([keys, torch.ones_like(keys)], dim=1),
    )
    blocks = _blocks(item, n, seed + 1), _blocks(visual, u, seed + 2)
    write_index(out, entities, *blocks, dtype=dtype, fingerprint=fingerprint, progress=progress)


def _blocks(shapes: dict[str, tuple[int, ...]], count: int, seed: int) -> Iterator[Vectors]:
    generator = _generator(seed)
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        yield {name: _normal((size, *shape), generator) for name, shape in shapes.items()}


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
