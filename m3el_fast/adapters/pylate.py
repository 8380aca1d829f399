"""Reranking in PyLate's manner, without PyLate: embeddings of mentions and entities, and ``rerank``."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from m3el_fast.adapters.encoding import Encoded, encode
from m3el_fast.adapters.pairs import open_model, score
from m3el_fast.adapters.records import Item, parse_document, parse_query
from m3el_fast.devices import named_device
from m3el_fast.errors import InputError
from m3el_fast.matching import Matcher, Role, Side
from m3el_fast.models import MELModel


class RerankResult(TypedDict):
    """A document's id and its score, as PyLate's."""

    id: int | str
    score: float


@dataclass(frozen=True, eq=False)
class Embedding:
    """A mention or an entity, encoded: the ``row`` in all that one call of :meth:`M3ELEncoder.encode` ``encoded``.

    It may be pickled, best together with all others of that call, which share what is stored.
    """

    encoded: Encoded
    row: int


class M3ELEncoder:
    """Encodes mentions and entities with a model of this package, in the place of PyLate's ``models.ColBERT``.

    Args:
        model_name_or_path: a model, or a checkpoint's folder or Hub name.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None = where the model given is, for a checkpoint a GPU where there is
            one.

    Raises:
        InputError: the checkpoint or the device cannot be used.
    """

    def __init__(self, model_name_or_path: MELModel | str | Path, device: torch.device | str | None = None) -> None:
        self.model = open_model(model_name_or_path, device)

    def encode(
        self, sentences: Any, *, batch_size: int = 32, show_progress_bar: bool = False, is_query: bool = True
    ) -> Any:
        """Embeddings of mentions (``is_query=True``) or entities, on the model's device.

        Args:
            sentences: a record, a list of records, or a list of such lists, one for each query. A record is a string,
                read as it stands, a PIL image, or a mapping with ``text``, ``image`` and, of a mention, ``mention``,
                of an entity, ``name`` (:func:`~m3el_fast.adapters.records.parse_query`,
                :func:`~m3el_fast.adapters.records.parse_document`).
            batch_size: texts or pictures that are encoded at a time.

        Returns:
            An embedding in the place of each record. What is distinct in a call is encoded and held once.

        Raises:
            InputError: a record is something else, or a picture cannot be read; names the record.
        """
        parse = parse_query if is_query else parse_document
        role: Role = "mention" if is_query else "entity"
        items: list[Item] = []

        def place(records: object, where: str) -> Any:
            if isinstance(records, list):
                return [place(record, f"{where}, record {number}") for number, record in enumerate(records, 1)]
            items.append(parse(records, where))
            return len(items) - 1

        places = place(sentences, "sentences")
        if not items:
            return places
        encoded, rows = encode(self.model, items, role, batch_size, show_progress_bar)

        def embedding(places: Any) -> Any:
            if isinstance(places, list):
                return [embedding(place) for place in places]
            return Embedding(encoded, int(rows[places]))

        return embedding(places)


def rerank(
    documents_ids: Sequence[Sequence[int | str]],
    queries_embeddings: Embedding | Sequence[Embedding],
    documents_embeddings: Sequence[Sequence[Embedding]],
    device: str | None = None,
) -> list[list[RerankResult]]:
    """For each query its documents by their union score, best first, of equal ones the earlier first.

    Arguments and result are those of PyLate's ``rank.rerank``; the score is not MaxSim, but all of the model's.

    Args:
        documents_ids: for each query the ids of its documents.
        queries_embeddings: of :meth:`M3ELEncoder.encode` with ``is_query=True``; one stands for a list of it.
        documents_embeddings: for each query those of its documents, with ``is_query=False``.
        device: where to score; None = where the query's embedding is.

    Raises:
        InputError: the numbers of queries or of a query's documents differ, an embedding is none, or of the other kind
            or another model, or there is no such device.
    """
    queries = [queries_embeddings] if isinstance(queries_embeddings, Embedding) else queries_embeddings
    _check(documents_ids, queries, documents_embeddings)
    together: dict[tuple[Encoded, Encoded], list[tuple[int, int]]] = {}
    for number, (query, documents) in enumerate(zip(queries, documents_embeddings, strict=True)):
        for place, document in enumerate(documents):
            together.setdefault((query.encoded, document.encoded), []).append((number, place))
    for (left, right), pairs in together.items():
        if not _same(left.matcher, right.matcher):
            where = f"documents_embeddings, query {pairs[0][0] + 1}"
            raise InputError(where, "embeddings of the query's model", "another model's")
    scores = [[0.0] * len(ids) for ids in documents_ids]
    for (left, right), pairs in together.items():
        target = _device(left) if device is None else named_device(str(device))
        query_rows = torch.tensor([queries[number].row for number, _ in pairs])
        document_rows = torch.tensor([documents_embeddings[number][place].row for number, place in pairs])
        found = score(_moved(left, target), _moved(right, target), query_rows, document_rows).tolist()
        for (number, place), value in zip(pairs, found, strict=True):
            scores[number][place] = value
    return [_ranked(ids, own) for ids, own in zip(documents_ids, scores, strict=True)]


def _ranked(ids: Sequence[int | str], scores: list[float]) -> list[RerankResult]:
    order = sorted(range(len(ids)), key=lambda place: -scores[place])
    return [RerankResult(id=ids[place], score=scores[place]) for place in order]


def _check(
    ids: Sequence[Sequence[int | str]], queries: Sequence[Embedding], documents: Sequence[Sequence[Embedding]]
) -> None:
    for name, given in (("documents_ids", ids), ("documents_embeddings", documents)):
        if len(given) != len(queries):
            raise InputError(name, f"one list for each of {len(queries)} queries", f"{len(given)} lists")
    for number, (query, own, its_ids) in enumerate(zip(queries, documents, ids, strict=True), 1):
        where = f"query {number}"
        _check_embedding(query, "mention", f"queries_embeddings, {where}")
        if len(own) != len(its_ids):
            raise InputError(f"documents_ids, {where}", f"one id for each of {len(own)} documents", len(its_ids))
        for place, document in enumerate(own, 1):
            _check_embedding(document, "entity", f"documents_embeddings, {where}, document {place}")


def _check_embedding(embedding: object, role: Role, where: str) -> None:
    flag = f"M3ELEncoder.encode(..., is_query={role == 'mention'})"
    if not isinstance(embedding, Embedding):
        raise InputError(where, f"an embedding of {flag}", type(embedding).__name__)
    if embedding.encoded.role != role:
        raise InputError(where, f"an embedding of {flag}", f"one with is_query={role != 'mention'}")


def _same(one: Matcher, other: Matcher) -> bool:
    """Whether two matchers hold the same weights; they are two where embeddings were pickled."""
    if one is other:
        return True
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[name].cpu(), its[name].cpu()) for name in mine)


def _device(encoded: Encoded) -> torch.device:
    assert encoded.side.image_index is not None
    return encoded.side.image_index.device


def _moved(encoded: Encoded, device: torch.device) -> Encoded:
    if _device(encoded) == device:
        return encoded
    side = encoded.side
    assert side.image_index is not None
    item, visual = ({name: tensor.to(device) for name, tensor in part.items()} for part in (side.item, side.visual))
    moved = Side(item, visual, side.image_index.to(device))
    return Encoded(copy.deepcopy(encoded.matcher).to(device), encoded.role, moved)
