"""An index in words and numbers."""

from __future__ import annotations

from m3el_fast.index.layout import Row
from m3el_fast.index.manifest import FORMAT
from m3el_fast.index.store import IndexVersion


def bytes_per_entity(index: IndexVersion) -> float:
    """Average over the live entities of all that is on the disk."""
    return sum(file.bytes for file in index.manifest.files) / max(1, len(index))


def describe(index: IndexVersion) -> str:
    """What ``info`` prints, a few lines."""
    manifest = index.manifest
    layout, rows = manifest.layout, max(1, index.rows)
    lines = {
        "index": f"{index.path}, version {manifest.version} (format {FORMAT})",
        "model": f"{manifest.model}, fingerprint {manifest.fingerprint or 'none'}, towers {manifest.precision}",
        "entities": f"{len(index):,}, and {manifest.removed:,} removed",
        "images": f"{index.visual_rows:,} distinct, {index.visual_rows / rows:.2f} an entity",
        "entity": _rows(layout.item),
        "image": _rows(layout.visual),
        "coarse": ", ".join(f"{part.name} {part.stop - part.start}" for part in layout.parts) or "none",
        "disk": f"{_size(sum(file.bytes for file in manifest.files))}, {bytes_per_entity(index):,.0f} bytes "
        f"an entity ({layout.item_bytes():,} each and {layout.visual_bytes():,} an image)",
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _rows(rows: dict[str, Row]) -> str:
    return ", ".join(f"{name} {row.dtype} {list(row.shape)}" for name, row in rows.items()) or "nothing"
