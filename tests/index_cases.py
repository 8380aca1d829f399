"""What tests of the entity index share: a tiny KB, sources of some of its entities, and how an index compares."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m3el_fast.config import RunConfig
from m3el_fast.data.layout import KnowledgeBase
from m3el_fast.data.tokenized import TokenizedSide
from m3el_fast.dataset import Dataset, kb_source, load_dataset
from m3el_fast.errors import InputError
from m3el_fast.index import Entities, EntityIndex
from m3el_fast.index.layout import Layout
from m3el_fast.models import MELModel
from tiny import tiny_config, tiny_model, write_tiny


@dataclass(frozen=True)
class Case:
    """A model, and the twelve entities of the tiny KB: three texts; 8 and 9 are identical, and so are 10 and 11, which
    have no image."""

    config: RunConfig
    model: MELModel
    data: Dataset

    @property
    def ids(self) -> list[str]:
        return [entity.qid for entity in self.data.kb.entities]

    def source(self, rows: Sequence[int]) -> TokenizedSide:
        """The entities ``rows`` as a source of their own."""
        assert isinstance(self.data.entities, TokenizedSide)
        kb = self.data.kb
        chosen = KnowledgeBase(kb.root, [kb.entities[row] for row in rows])
        return kb_source(chosen, self.config.data, self.model.encoder, self.data.entities.cache)

    def build(self, out: Path | None = None, rows: Sequence[int] = range(12), **options: Any) -> EntityIndex:
        settings = {"ids": [self.ids[row] for row in rows], "precision": "fp32", "progress": False} | options
        return EntityIndex.build(self.model, self.source(rows), out, **settings)


def make_case(folder: Path, model: dict[str, Any] | None = None) -> Case:
    """Decodes images, so M3EL_CACHE should be set."""
    config = tiny_config(write_tiny(folder), model)
    made = tiny_model(config).requires_grad_(False).eval()
    return Case(config, made, load_dataset(config.data, folder, made.encoder, [], progress=False))


def item_of(index: EntityIndex, row: int) -> dict[str, Tensor]:
    """The tensors of one entity, and those of its image."""
    ((_, item, at),) = index.items(torch.tensor([row]))
    ((_, visual, place),) = index.visual(index.image_index[[row]])
    return {k: v[at][0] for k, v in item.items()} | {f"image {k}": v[place][0] for k, v in visual.items()}


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder but for the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "lock"}


def random_entities(count: int, images: int, ids: Sequence[str] | None = None) -> Entities:
    """Entities for the writer, entity i with image i modulo ``images``."""
    ids = [f"Q{row}" for row in range(count)] if ids is None else ids
    keys = torch.arange(images)
    return Entities(ids, ids, torch.arange(count), torch.arange(count) % images, torch.stack([keys, keys + 1], dim=1))


ROW_SHAPES = {"text.global": (6,), "text.query": (3, 4), "text.gate": (4,), "cross.t2v": (4,)}
IMAGE_SHAPES = {"global": (5,), "query": (2, 4), "gate": (4,)}


def random_rows(shapes: dict[str, tuple[int, ...]], count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}


def small_layout() -> Layout:
    return Layout.of(random_rows(ROW_SHAPES, 1), random_rows(IMAGE_SHAPES, 1), "bf16")


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; the signal that ended it, 0 = none, -1 = an exception."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    return -1 if os.WEXITSTATUS(status) else 0


def refused(work: Callable[[], object], message: str) -> None:
    """``work`` raises an InputError that says ``message`` (a regular expression)."""
    with pytest.raises(InputError, match=message):
        work()


CALLS = ("pwrite", "fsync", "replace", "rename", "posix_fallocate", "unlink", "open")


def killed_at(work: Callable[[], object], call: int) -> bool:
    """Run ``work`` in a process that is killed (SIGKILL) before its ``call``-th change of a file; False = it ended."""

    def run() -> None:
        left = [call]
        for name in CALLS:
            setattr(os, name, _counted(getattr(os, name), left))
        work()

    ended = in_child(run)
    assert ended in (0, signal.SIGKILL)
    return ended == signal.SIGKILL


def _counted(function: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def counted(*args: Any, **options: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*args, **options)

    return counted
