"""Building an index of a whole KB: streamed, taken up again after a kill, and there whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from m3el_fast.encode import KBEncoder, Precision, Source
from m3el_fast.files import replace_file
from m3el_fast.index.contents import contents
from m3el_fast.index.fill import Done, Shapes, fill
from m3el_fast.index.fingerprint import fingerprint
from m3el_fast.index.folder import CONTEXT, STATE, build_folder, clear, require_space
from m3el_fast.index.layout import StoredType
from m3el_fast.index.manifest import FORMAT, Manifest
from m3el_fast.index.plan import Plan
from m3el_fast.index.segment import SegmentWriter, segment_bytes
from m3el_fast.index.shards import ShardWriter, raw_bytes, shard_bytes, sync_folder
from m3el_fast.models import MELModel


def build_index(
    model: MELModel,
    source: Source,
    out: Path,
    ids: Sequence[str],
    names: Sequence[str],
    dtype: StoredType,
    precision: Precision,
    progress: bool,
) -> None:
    """As :meth:`EntityIndex.build`, into the folder ``out``."""
    with build_folder(out) as folder:
        plan = Plan.of(source, contents(source, progress), ids, names, None)
        encoder = KBEncoder(model, source, precision=precision)
        shapes = Shapes.of(encoder, plan, dtype)
        weights = fingerprint(model)
        identity = _identity(plan, weights, dtype, encoder.precision)
        done = _state(folder, identity)
        resume = done is not None
        if not resume:
            clear(folder, ())
            require_space(folder, segment_bytes(plan.entities, shapes.layout) + shard_bytes(shapes.context))
        with (
            SegmentWriter(folder, 1, plan.entities, shapes.layout, resume) as writer,
            ShardWriter(folder / CONTEXT, shapes.context, resume) as context,
        ):
            save = partial(_save, folder, identity)
            done = done or Done()
            save(done)
            fill(encoder, plan, writer, context, done, save, progress)
            segment = writer.finish()
        Manifest(
            version=1,
            fingerprint=weights,
            model=model.config.model.type,
            precision=encoder.precision,
            layout=shapes.layout,
            segments=[segment],
        ).write(folder)


def _identity(plan: Plan, weights: str, dtype: StoredType, precision: Precision) -> str:
    """A digest of all that decides an index: a build goes on only with what one of the same index has left."""
    digest = hashlib.blake2b(digest_size=16)
    entities = plan.entities
    strings = json.dumps([FORMAT, weights, dtype, precision, list(entities.ids), list(entities.names)])
    digest.update(strings.encode())
    for tensor in (entities.text_key, entities.image_index, entities.digests):
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def _state(folder: Path, identity: str) -> Done | None:
    path = folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a power cut may leave half of it
        return None
    return Done(**state["done"]) if state["identity"] == identity else None


def _save(folder: Path, identity: str, done: Done) -> None:
    sync_folder(folder)
    with replace_file(folder / STATE) as temporary:
        temporary.write_text(json.dumps({"identity": identity, "done": asdict(done)}), encoding="utf-8")
