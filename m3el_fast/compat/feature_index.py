"""A temporary entity index of features that stream by: what ranking keeps of them, on the disk, each image once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from m3el_fast.compat.inputs import without_autocast
from m3el_fast.errors import InputError
from m3el_fast.features import Features, Vectors
from m3el_fast.index import Entities, EntityIndex
from m3el_fast.index.folder import disk_errors, require_space
from m3el_fast.index.layout import Layout
from m3el_fast.index.lookup import digests
from m3el_fast.index.manifest import Manifest, Segment
from m3el_fast.index.segment import SegmentWriter, segment_bytes
from m3el_fast.matching import Matcher
from m3el_fast.models import MELModel

_SEGMENT = 4096  # entities of one pair of files; as many are held, 150 MB at the papers' sizes


class FeatureIndex(EntityIndex):
    """An index without a model: it goes with the matcher that made it, and ends with its last user.

    Args:
        folder: of its files.
    """

    def __init__(self, folder: tempfile.TemporaryDirectory[str], manifest: Manifest) -> None:
        super().__init__(Path(folder.name), manifest, folder)
        self.remove_files = folder.cleanup

    def check(self, model: MELModel) -> None:
        """It is only ever used with its own matcher."""


def index_features(matcher: Matcher, blocks: Iterable[Features], total: int | None, progress: bool) -> FeatureIndex:
    """The index of all entities of ``blocks``, in fp32; row i is the i-th entity. Entities are identical where their
    features are, bit for bit.

    Args:
        blocks: features on the matcher's device, of at least one entity each; total: of entities, where it is known.

    Raises:
        InputError: no entity, a feature that is not finite, or too little disk for temporary files.
    """
    folder = tempfile.TemporaryDirectory(prefix="m3el-entities-")
    writer = _Writer(matcher, Path(folder.name))
    with (
        ExitStack() as unfinished,
        disk_errors(Path(folder.name)),
        tqdm(total=total, desc="entities", unit="entity", disable=not progress, delay=2, leave=False) as bar,
    ):
        # at once, also where a notebook keeps the traceback, and with it the folder
        unfinished.callback(folder.cleanup)
        for features in blocks:
            writer.add(features)
            bar.update(len(features))
        index = FeatureIndex(folder, writer.finish())
        unfinished.pop_all()
    return index


class _Writer:
    """Writes segment after segment into ``folder``."""

    def __init__(self, matcher: Matcher, folder: Path) -> None:
        self._matcher, self._folder = matcher, folder
        self._segments: list[Segment] = []
        self._layout: Layout | None = None
        self._rows = self._written = 0  # entities so far, and those of finished segments
        self._images: dict[tuple[int, ...], int] = {}  # the visual row of each image, by its digest
        self._written_images = 0
        self._items: list[Vectors] = []
        self._visual: list[Vectors] = []
        self._texts: list[Tensor] = []
        self._image_index: list[int] = []

    @torch.inference_mode()
    def add(self, features: Features) -> None:
        # what entities share, such as no image, goes through the matcher once a block
        digest = _digests(features.image_global, features.image_local)
        distinct, own = digest.unique(dim=0, return_inverse=True)
        first = torch.full((len(distinct),), len(own)).scatter_reduce(0, own, torch.arange(len(own)), "amin")
        place = first.to(features.image_global.device)
        glob, local = features.image_global[place], features.image_local[place]
        with without_autocast(glob.device):
            shared = Features(features.text_global, features.text_local, glob, local, own.to(glob.device))
            side = self._matcher.entity_side(shared)
        keys = [tuple(key) for key in distinct.tolist()]
        new = torch.tensor([key not in self._images for key in keys])
        rows = [self._images.setdefault(key, len(self._images)) for key in keys]
        self._items.append({name: tensor.cpu() for name, tensor in side.item.items()})
        self._visual.append({name: tensor.cpu()[new] for name, tensor in side.visual.items()})
        self._texts.append(_digests(features.text_global, features.text_local)[:, 0])
        self._image_index += [rows[i] for i in own.tolist()]
        self._rows += len(own)
        if self._rows - self._written >= _SEGMENT:
            self._write()

    def finish(self) -> Manifest:
        if self._rows > self._written:
            self._write()
        if self._layout is None:
            raise InputError("entities", "at least one", 0)
        return Manifest(
            version=len(self._segments),
            fingerprint="",
            model="",
            precision="fp32",
            layout=self._layout,
            segments=self._segments,
        )

    def _write(self) -> None:
        items, visual = _joined(self._items), _joined(self._visual)
        self._layout = self._layout or Layout.of(items, visual, "fp32")
        ids = [str(row) for row in range(self._written, self._rows)]
        images = torch.tensor(list(self._images)[self._written_images :], dtype=torch.int64).view(-1, 2)
        index = torch.tensor(self._image_index)
        entities = Entities(ids, ids, torch.cat(self._texts), index, images, self._written_images)
        require_space(self._folder, segment_bytes(entities, self._layout))
        with SegmentWriter(self._folder, len(self._segments) + 1, entities, self._layout) as writer:
            writer.put_items(torch.arange(len(ids)), items)
            if len(images):
                writer.put_visual(torch.arange(len(images)), visual)
            self._segments.append(writer.finish())
        self._written, self._written_images = self._rows, len(self._images)
        self._items, self._visual, self._texts, self._image_index = [], [], [], []


def _joined(parts: list[Vectors]) -> Vectors:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _digests(glob: Tensor, local: Tensor) -> Tensor:
    """[n, 2] int64 of the features [n, width] and [n, tokens, width]: equal exactly where both are."""
    rows = torch.cat([glob.flatten(1), local.flatten(1)], dim=1).detach().cpu().numpy()
    return digests((row.data for row in rows), 2)
