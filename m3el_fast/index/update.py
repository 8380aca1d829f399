"""Adding entities to an index and removing them: a new version beside the old ones' files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from m3el_fast.encode import KBEncoder, Source
from m3el_fast.errors import InputError
from m3el_fast.index.contents import contents
from m3el_fast.index.fill import Done, Shapes, fill
from m3el_fast.index.folder import CONTEXT, clear, disk_errors, require_space, writer_lock
from m3el_fast.index.manifest import File, Manifest, Removal
from m3el_fast.index.plan import Plan
from m3el_fast.index.segment import SegmentWriter, refuse_repeated, segment_bytes
from m3el_fast.index.shards import ShardWriter, Spec, shard_bytes
from m3el_fast.index.store import IndexVersion
from m3el_fast.models import MELModel

_COPIED = 1024  # rows at a time


def add_entities(
    path: Path, model: MELModel, source: Source, ids: Sequence[str], names: Sequence[str], progress: bool
) -> None:
    """As :meth:`EntityIndex.add`, to the newest version in the folder ``path``."""
    with _writing(path) as index:
        index.check(model)
        refuse_repeated(ids)
        there = (index.find(ids) >= 0).nonzero()[:, 0].tolist()
        if there:
            hint = "Remove it first, or leave it out"
            raise InputError(path, f"ids that are not in the index ({len(there)} are)", repr(ids[there[0]]), hint)
        plan = Plan.of(source, contents(source, progress), ids, names, index)
        encoder = KBEncoder(model, source, precision=index.manifest.precision)
        layout, context = index.manifest.layout, _context(encoder, plan, index)
        require_space(path, segment_bytes(plan.entities, layout) + shard_bytes(context))
        version = index.manifest.version + 1
        with (
            SegmentWriter(path, version, plan.entities, layout) as writer,
            ShardWriter(path / CONTEXT, context) as temporary,
        ):
            _copy_known(index, plan, writer)
            fill(encoder, plan, writer, temporary, Done(), lambda done: None, progress)
            segment = writer.finish()
        segments = [*index.manifest.segments, segment]
        index.manifest.model_copy(update={"version": version, "segments": segments}).write(path)


def remove_entities(path: Path, ids: Sequence[str]) -> None:
    """As :meth:`EntityIndex.remove`, from the newest version in the folder ``path``."""
    with _writing(path) as index:
        refuse_repeated(ids)
        rows = index.find(ids)
        unknown = (rows < 0).nonzero()[:, 0].tolist()
        if unknown:
            raise InputError(path, f"ids that are in the index ({len(unknown)} are not)", repr(ids[unknown[0]]))
        version = index.manifest.version + 1
        file = path / f"removed-{version:06d}.safetensors"
        with ShardWriter(file, {"rows": (torch.int64, (len(rows),))}) as shard:
            shard.put_all("rows", rows)
            shard.sync()
        removals = [*index.manifest.removals, Removal(file=File.of(file), rows=len(rows))]
        index.manifest.model_copy(update={"version": version, "removals": removals}).write(path)


@contextmanager
def _writing(path: Path) -> Iterator[IndexVersion]:
    """The newest version, while nobody else can write; leaves nothing behind that no manifest names."""
    Manifest.read(path)  # before a lock is made in a folder that is no index
    with writer_lock(path), disk_errors(path):
        try:
            yield IndexVersion(path, Manifest.read(path))
        finally:
            clear(path, {file.name for file in Manifest.read(path).files})


def _context(encoder: KBEncoder, plan: Plan, index: IndexVersion) -> dict[str, Spec]:
    """What items need of images, while they are encoded."""
    return Shapes.of(encoder, plan, index.manifest.layout.dtype).context if len(plan.items) else {}


def _copy_known(index: IndexVersion, plan: Plan, writer: SegmentWriter) -> None:
    """The tensors of entities that the index has under another id, bit for bit."""
    rows, places = plan.known.sort()
    there = rows >= 0
    for old, new in zip(rows[there].split(_COPIED), places[there].split(_COPIED), strict=True):
        for part, stored, local in index.stored(old):
            writer.put_stored(new[part], {name: tensor[local] for name, tensor in stored.items()})
