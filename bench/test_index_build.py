"""Building an index from tower outputs (``test_encode_kb.py`` measures the towers): entities/s, bytes, the disk."""

from __future__ import annotations

from pathlib import Path

from bench.measure import Measure
from bench.scales import Scale
from bench.worker import Worker


def test_build(measure: Measure, scale: Scale, folder: Path) -> None:
    """The limit is a plain write of the same bytes. Encoding is the entity side alone; the rest of a build writes what
    was encoded and reads it once more for the checksums."""
    options = {"entities": scale.build_entities, "folder": str(folder)}
    with Worker("bench.cases.index_build:Build", options) as worker:
        worker.call("verify")
        measure.time(lambda: worker.call("run"), scale.rounds)
        encoding, plain = (worker.call(name, scale.rounds) for name in ("encode_seconds", "write_seconds"))
        peak, size = worker.call("peak"), worker.call("size")
    measure.record(
        "index build from tower outputs",
        items=scale.build_entities,
        unit="entities",
        limit=plain / scale.build_entities,
        peak=peak,
        entities=scale.build_entities,
        bytes_per_entity=size / scale.build_entities,
        encoding_s=encoding,
        plain_write_GB_s=size / plain / 1e9,
    )
