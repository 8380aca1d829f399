"""Writing one segment of an index: the files of some entities and of the images that they brought."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from torch import Tensor

from m3el_fast.errors import InputError
from m3el_fast.features import Vectors
from m3el_fast.index.layout import Layout, specs
from m3el_fast.index.lookup import digests, pack_table
from m3el_fast.index.manifest import File, Segment
from m3el_fast.index.shards import ShardWriter, Spec, shard_bytes
from m3el_fast.index.strings import encode, pack


@dataclass(frozen=True)
class Entities:
    """What is known of n entities before they are encoded.

    Attributes:
        ids: any strings, each once; names: for answers.
        text_key: [n] int64, equal exactly where texts are.
        image_index: [n] int64, the visual row of each in the whole index.
        digests: [u, 2] int64, by which the images of the new visual rows are known; (0, 0) = no image.
        first_image: the first of the new visual rows.

    Raises:
        InputError: no entity, an id given twice, or lists of different lengths.
    """

    ids: Sequence[str]
    names: Sequence[str]
    text_key: Tensor
    image_index: Tensor
    digests: Tensor
    first_image: int = 0

    def __post_init__(self) -> None:
        refuse_repeated(self.ids)
        for name in ("names", "text_key", "image_index"):
            if len(getattr(self, name)) != len(self.ids):
                raise InputError(name, f"one for each of {len(self.ids)} ids", len(getattr(self, name)))


def refuse_repeated(ids: Sequence[str]) -> None:
    """Raises InputError where there is no id, an id is there twice, or one is no string."""
    if not len(ids):
        raise InputError("ids", "at least one entity", "none")
    seen: set[str] = set()
    for number, one in enumerate(ids, 1):
        if not isinstance(one, str):
            raise InputError(f"ids, entity {number}", "a string", repr(one))
        if one in seen:
            raise InputError(f"ids, entity {number}", "each id once", f"{one!r} again")
        seen.add(one)


def id_keys(ids: Sequence[str]) -> Tensor:
    """[n] int64, by which ids are looked up."""
    return digests(map(encode, ids), 1)[:, 0]


class SegmentWriter:
    """The two files of a segment; rows of entities and of images may come in any order.

    Args:
        folder: of the index; version: of the index that the segment will be part of, which names its files.
        entities: whose rows are to come; layout: of the tensors.
        resume: go on with the files that an earlier writer of the same arguments left.

    Raises:
        InputError: with ``resume``, the files there are others.
        OSError: the disk is full, or any other failure.
    """

    def __init__(self, folder: Path, version: int, entities: Entities, layout: Layout, resume: bool = False) -> None:
        self.entities, self.layout = entities, layout
        tables = _tables(entities)
        with ExitStack() as opened:
            self._items, self._visual = (
                opened.enter_context(ShardWriter(folder / f"{kind}-{version:06d}.safetensors", whole, resume))
                for kind, whole in zip(("items", "visual"), _specs(entities, layout, tables), strict=True)
            )
            if not resume:
                for shard, table in zip((self._items, self._visual), tables, strict=True):
                    for name, values in table.items():
                        shard.put_all(name, values)
            self._opened = opened.pop_all()

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def put_items(self, rows: Tensor, item: Vectors) -> None:
        """Write the tensors of n entities as ``model.entity_side`` gives them.

        Args:
            rows: [n] int64 rows of the segment.

        Raises:
            InputError: a value is not finite, or names or shapes are not those of the layout.
        """
        self.put_stored(rows, self.layout.store_item(item))

    def put_stored(self, rows: Tensor, stored: Vectors) -> None:
        """As :meth:`put_items`, for tensors as :meth:`Layout.store_item` gives them."""
        for name, values in self.layout.split(stored).items():
            wrong = _not_finite(values)
            if wrong is not None:
                raise _refusal(self.entities.ids[int(rows[wrong])], name, values[wrong])
        for name, values in stored.items():
            self._items.put(name, rows, values)

    def put_visual(self, rows: Tensor, visual: Vectors) -> None:
        """Write the tensors of u images; ``rows`` [u] int64 are rows of the segment. Raises as :meth:`put_items`."""
        for name, values in self.layout.store_visual(visual).items():
            wrong = _not_finite(values)
            if wrong is not None:
                row = int(rows[wrong]) + self.entities.first_image
                owner = int((self.entities.image_index == row).nonzero()[0])
                raise _refusal(self.entities.ids[owner], f"image, {name}", values[wrong])
            self._visual.put(name, rows, values)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        self._items.sync()
        self._visual.sync()

    def finish(self) -> Segment:
        """The manifest's entry, once all rows are written and on the disk."""
        self.sync()
        return Segment(
            items=File.of(self._items.path),
            visual=File.of(self._visual.path),
            rows=len(self.entities.ids),
            visual_rows=len(self.entities.digests),
        )


def segment_bytes(entities: Entities, layout: Layout) -> int:
    """Disk space that the files of a segment take."""
    return sum(map(shard_bytes, _specs(entities, layout, _tables(entities))))


def _tables(entities: Entities) -> tuple[Vectors, Vectors]:
    """What the two files hold beside the layout's tensors."""
    ids, ids_at = pack(entities.ids)
    names, names_at = pack(entities.names)
    id_key, id_row = pack_table(id_keys(entities.ids))
    image_key, image_row = pack_table(entities.digests[:, 0])
    items = {
        "entity.image_index": entities.image_index,
        "entity.text_key": entities.text_key,
        "entity.id_key": id_key,
        "entity.id_row": id_row,
        "entity.ids_at": ids_at,
        "entity.names_at": names_at,
        "entity.ids": ids,
        "entity.names": names,
    }
    return items, {"image.digest": entities.digests, "image.key": image_key, "image.row": image_row}


def _specs(entities: Entities, layout: Layout, tables: tuple[Vectors, Vectors]) -> list[dict[str, Spec]]:
    counts = len(entities.ids), len(entities.digests)
    return [
        specs(rows, count) | {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in table.items()}
        for rows, count, table in zip((layout.item, layout.visual), counts, tables, strict=True)
    ]


def _not_finite(values: Tensor) -> int | None:
    """The first row with a NaN or an infinite value."""
    finite = values.isfinite()
    return None if finite.all() else int((~finite.flatten(1).all(dim=1)).nonzero()[0])


def _refusal(id: str, name: str, values: Tensor) -> InputError:
    wrong = values[~values.isfinite()][0]
    return InputError(f"entity {id!r}, {name}", "finite features", float(wrong))
