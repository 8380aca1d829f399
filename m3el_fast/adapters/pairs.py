"""Scores of listed pairs of queries and documents that are in no index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from m3el_fast.adapters.encoding import Encoded, encode
from m3el_fast.adapters.records import Item
from m3el_fast.devices import named_device
from m3el_fast.matching import Side
from m3el_fast.models import MELModel, load_model
from m3el_fast.scoring.entities import Gathered
from m3el_fast.scoring.pairs import PairScorer


def open_model(model: MELModel | str | Path, device: torch.device | str | None = None) -> MELModel:
    """A model in evaluation mode: the one given, moved to ``device`` where that is named, or a checkpoint (folder or
    Hub name), on a GPU where there is one and no device is named.

    Raises:
        InputError: the checkpoint or the device cannot be used.
    """
    if isinstance(model, MELModel):
        return (model if device is None else model.to(named_device(str(device)))).eval()
    place = named_device(None if device is None else str(device))
    return load_model(model).to(place)


@torch.inference_mode()
def score(queries: Encoded, documents: Encoded, query: Tensor, document: Tensor) -> Tensor:
    """Union scores [P] fp32 of the pairs (query[i], document[i]), [P] int64 rows; on the device of both sides.

    The arithmetic is the scorer's settling in fp32, also under autocast. Scores differ from those of an index by what
    fp32 sums in batches of other sizes and the index's dtype do to features: relatively 4e-7 on the sample set, with
    bf16 2e-4.
    """
    found = _Documents(documents.side)
    scorer = PairScorer(queries.matcher, found, found, "fp32")
    device = found.image_index.device
    with torch.autocast(device.type, enabled=False):
        return scorer.scores(queries.side, query.to(device), document.to(device))["union"]


def score_pairs(
    model: MELModel, queries: Sequence[Item], documents: Sequence[Item], batch_size: int, progress: bool = False
) -> Tensor:
    """Union scores [P] fp32 of the pairs (queries[i], documents[i]), on the model's device: all that is distinct is
    encoded once (:func:`encode`) and held in memory at once, then the pairs are scored (:func:`score`).

    Raises:
        InputError: as :func:`encode`.
    """
    if not queries:
        return torch.empty(0, device=model.device)
    left, query = encode(model, queries, "mention", batch_size, progress)
    right, document = encode(model, documents, "entity", batch_size, progress)
    return score(left, right, query, document)


class _Documents:
    """Documents in the place of an index's entities, and of what says which of these are identical: none is."""

    def __init__(self, side: Side) -> None:
        assert side.image_index is not None
        self._side, self.image_index = side, side.image_index
        self.text = self.both = torch.arange(len(side.image_index), device=side.image_index.device)

    def items(self, rows: Tensor) -> Gathered:
        yield slice(0, len(rows)), self._side.item, rows

    def visual(self, rows: Tensor) -> Gathered:
        yield slice(0, len(rows)), self._side.visual, rows
