"""M3EL and MIMIC as a ranker of the rerankers library."""

from __future__ import annotations

import base64
import binascii
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from m3el_fast.adapters.extras import require
from m3el_fast.adapters.pairs import open_model, score_pairs
from m3el_fast.adapters.records import Item, parse_document, parse_query
from m3el_fast.errors import InputError
from m3el_fast.models import MELModel

require("rerankers", "rerankers")

from rerankers.documents import Document  # noqa: E402
from rerankers.models.ranker import BaseRanker  # noqa: E402
from rerankers.results import RankedResults, Result  # noqa: E402
from rerankers.utils import vprint  # noqa: E402


class M3ELRanker(BaseRanker):
    """Ranks entities for a mention by the union scores of a model of this package, which have no bounds.

    A query is a mention: a string, read as it stands (``MENTION [SEP] SENTENCE``), or a mapping of ``text``,
    ``mention`` and ``image`` (:func:`~m3el_fast.adapters.records.parse_query`). A document is an entity: a string
    (``NAME [SEP] TEXT``) or a ``Document`` with a ``text``, a picture (``base64``, else ``image_path``) or both,
    whatever its ``document_type``.

    Args:
        model_name_or_path: a model, or a checkpoint's folder or Hub name.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None = where the model given is, for a checkpoint a GPU where there is
            one.
        batch_size: texts or pictures that are encoded at a time.
        verbose: 0 = say nothing, show no progress bar.

    Raises:
        InputError: the checkpoint or the device cannot be used.
    """

    def __init__(
        self,
        model_name_or_path: MELModel | str | Path,
        device: torch.device | str | None = None,
        batch_size: int = 32,
        verbose: int = 1,
    ) -> None:
        if not isinstance(model_name_or_path, MELModel):
            vprint(f"Loading model {model_name_or_path}...", verbose)
        self.model = open_model(model_name_or_path, device)
        self.batch_size, self.verbose = batch_size, verbose

    @property
    def device(self) -> torch.device:
        return self.model.device

    def score(self, query: str | Mapping[str, Any], doc: str | Document) -> float:
        """The score of one document.

        Raises:
            InputError: the query or the document is something else, or a picture cannot be read.
        """
        return self._scores(query, [_item(doc, "doc")])[0]

    def rank(
        self,
        query: str | Mapping[str, Any],
        docs: str | Document | Sequence[str | Document],
        doc_ids: Sequence[str] | Sequence[int] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """All documents, best first; of equal ones the earlier first.

        Args:
            docs: strings and ``Document`` objects, which are not changed: results hold copies.
            doc_ids, metadata: one for each document, in place of its own; None = its own, and where it has no id its
                place, from 0.

        Raises:
            InputError: as :meth:`score`, naming the document, or there are not as many ids or metadata.
        """
        given = [docs] if isinstance(docs, str | Document) else list(docs)
        for name, values in (("doc_ids", doc_ids), ("metadata", metadata)):
            if values is not None and len(values) != len(given):
                raise InputError(name, f"one for each of {len(given)} documents", len(values))
        scores = self._scores(query, [_item(doc, f"docs, document {number}") for number, doc in enumerate(given, 1)])
        results = []
        for rank, place in enumerate(sorted(range(len(given)), key=lambda i: -scores[i]), 1):
            doc = given[place]
            document = Document(doc) if isinstance(doc, str) else copy.copy(doc)
            if doc_ids is not None:
                document.doc_id = doc_ids[place]
            elif document.doc_id is None:
                document.doc_id = place
            if metadata is not None:
                document.metadata = metadata[place]
            results.append(Result(document=document, score=scores[place], rank=rank))
        return RankedResults(results=results, query=query, has_scores=True)

    def _scores(self, query: str | Mapping[str, Any], documents: list[Item]) -> list[float]:
        queries = [parse_query(query, "query")] * len(documents)
        scores: list[float] = score_pairs(self.model, queries, documents, self.batch_size, self.verbose > 0).tolist()
        return scores


def _item(doc: str | Document, where: str) -> Item:
    if isinstance(doc, str):
        return parse_document(doc, where)
    if not isinstance(doc, Document):
        raise InputError(where, "a string or a Document", type(doc).__name__)
    try:
        image = base64.b64decode(doc.base64) if doc.base64 else doc.image_path
    except (binascii.Error, ValueError, TypeError) as error:
        raise InputError(f"{where}, field base64", "an image file in base64", error) from None
    return parse_document({"text": doc.text, "image": image}, where)
