"""PyLate's way: encode, then rerank; results as those of the real function, scores those of the model."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from adapters.reranking_cases import NEAR, documents, full_matrix, queries, write_pictures
from m3el_fast.adapters.pylate import Embedding, M3ELEncoder, RerankResult, rerank
from m3el_fast.errors import InputError
from tiny import tiny_config, tiny_model

# pylate.rank.rerank of PyLate 1.6, whose requirements exclude the present transformers
PARAMETERS = [("documents_ids", ...), ("queries_embeddings", ...), ("documents_embeddings", ...), ("device", None)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> M3ELEncoder:
    return M3ELEncoder(tiny_model(tiny_config(folder)))


IDS: list[list[int | str]] = [[3, 0, 5], ["a", "b", "c", "d", "e", "f"], [], [1], ["x", "x"], [7, 8]]
CHOSEN = [[3, 0, 5], [0, 1, 2, 3, 4, 5], [], [1], [2, 2], [4, 5]]  # documents of each of the six queries


def embeddings(folder: Path, encoder: M3ELEncoder) -> tuple[list[Embedding], list[list[Embedding]]]:
    given = documents(folder)
    return (
        encoder.encode(queries(folder), is_query=True),
        encoder.encode([[given[i] for i in own] for own in CHOSEN], is_query=False, batch_size=2),
    )


def test_scores_are_those_of_the_full_matrix(folder: Path, encoder: M3ELEncoder) -> None:
    expected = full_matrix(encoder.model, folder)
    found = rerank(IDS, *embeddings(folder, encoder))
    assert [len(own) for own in found] == [3, 6, 0, 1, 2, 2]
    for row, (ids, chosen, own) in enumerate(zip(IDS, CHOSEN, found, strict=True)):
        best = sorted(zip(ids, chosen, strict=True), key=lambda one: -expected[row, one[1]].item())
        assert [one["score"] for one in own] == pytest.approx([expected[row, i].item() for _, i in best], **NEAR)
        assert [one["id"] for one in own if one["id"] not in (0, 5, "a", "f")] == [
            i for i, _ in best if i not in (0, 5, "a", "f")
        ]
    # equal documents have equal scores, the earlier first
    scores = {one["id"]: (place, one["score"]) for place, one in enumerate(found[1])}
    assert scores["a"][1] == scores["f"][1] and scores["a"][0] + 1 == scores["f"][0]


def test_embeddings_of_several_calls(folder: Path, encoder: M3ELEncoder) -> None:
    """Of single records, of lists, and after pickling; the device named."""
    given = documents(folder)
    expected = rerank(IDS, *embeddings(folder, encoder), device="cpu")
    left = [encoder.encode(record) for record in queries(folder)]
    right = [[encoder.encode(given[i], is_query=False) for i in own] for own in CHOSEN]
    right[1] = pickle.loads(pickle.dumps(right[1]))
    found = rerank(IDS, left, right)
    for one, other in zip(found, expected, strict=True):
        assert {(e["id"], round(e["score"], 3)) for e in one} == {(e["id"], round(e["score"], 3)) for e in other}
        assert [e["score"] for e in one] == pytest.approx([e["score"] for e in other], **NEAR)
    assert rerank(IDS[:1], left[0], right[:1]) == found[:1]  # one embedding stands for a list of it


def test_what_encode_returns(encoder: M3ELEncoder) -> None:
    assert isinstance(encoder.encode("a"), Embedding)
    assert isinstance(encoder.encode({"text": "a"}, is_query=False), Embedding)
    nested = encoder.encode([["a", "b"], [], ["a"]], is_query=False)
    assert [len(own) for own in nested] == [2, 0, 1]
    assert nested[0][0].encoded is nested[2][0].encoded and nested[0][0].row == nested[2][0].row
    assert encoder.encode([]) == [] and encoder.encode([[], []]) == [[], []]


def test_nothing_to_rerank(encoder: M3ELEncoder) -> None:
    assert rerank([], [], []) == []
    assert rerank([[]], [encoder.encode("a")], [[]]) == [[]]


def shape(value: Any) -> Any:
    """The types in a result."""
    if isinstance(value, list):
        return [shape(one) for one in value]
    return {key: type(one) for key, one in value.items()}


def test_the_structure(folder: Path, encoder: M3ELEncoder) -> None:
    parameters = inspect.signature(rerank).parameters.values()
    assert [(p.name, ... if p.default is p.empty else p.default) for p in parameters] == PARAMETERS
    found = rerank(IDS, *embeddings(folder, encoder))
    assert shape(found[1]) == [{"id": str, "score": float}] * 6
    assert shape(found[0]) == [{"id": int, "score": float}] * 3
    for own in found:
        assert [one["score"] for one in own] == sorted((one["score"] for one in own), reverse=True)


def test_the_structure_is_that_of_the_real_function(folder: Path, encoder: M3ELEncoder) -> None:
    reason = "PyLate is not installed, and does not go with the present transformers"
    pylate = pytest.importorskip("pylate.rank", reason=reason)
    parameters = [(p.name, p.default) for p in inspect.signature(rerank).parameters.values()]
    assert parameters == [(p.name, p.default) for p in inspect.signature(pylate.rerank).parameters.values()]
    assert set(get_type_hints(RerankResult)) == set(get_type_hints(pylate.RerankResult))
    generator = torch.Generator().manual_seed(0)
    some = [[3, 0, 5], ["a", "b"], [1]]
    left = [torch.randn(4, 8, generator=generator) for _ in some]
    right = [[torch.randn(5, 8, generator=generator) for _ in own] for own in some]
    real = pylate.rerank(some, left, right)
    q, d = encoder.encode(["a", "b", "c"]), encoder.encode([["a", "b", "c"], ["d", "e"], ["f"]], is_query=False)
    assert shape(rerank(some, q, d)) == shape(real)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_bad_records_are_named(encoder: M3ELEncoder) -> None:
    with pytest.raises(InputError, match=r"^sentences, record 2: expected a string"):
        encoder.encode(["a", 3])
    with pytest.raises(InputError, match=r"^sentences, record 2, record 1, field text: expected a string, got int"):
        encoder.encode([["a"], [{"text": 3}]], is_query=False)
    with pytest.raises(InputError, match=r"^sentences: expected a string"):
        encoder.encode(None)


def test_what_does_not_fit_is_refused(folder: Path, encoder: M3ELEncoder) -> None:
    query, document = encoder.encode("a"), encoder.encode("b", is_query=False)
    other = M3ELEncoder(tiny_model(tiny_config(folder), seed=2)).encode("b", is_query=False)
    cases: list[tuple[Any, Any, Any, str]] = [
        ([[1], [2]], [query], [[document]], "documents_ids: expected one list for each of 1 queries, got 2 lists"),
        ([[1]], [query], [], "documents_embeddings: expected one list for each of 1 queries, got 0 lists"),
        ([[1, 2]], [query], [[document]], "documents_ids, query 1: expected one id for each of 1 documents, got 2"),
        (
            [[1]],
            [document],
            [[document]],
            "queries_embeddings, query 1: .*is_query=True.*, got one with is_query=False",
        ),
        ([[1]], [query], [[query]], "documents_embeddings, query 1, document 1: .* got one with is_query=True"),
        ([[1]], [torch.zeros(3, 4)], [[document]], "queries_embeddings, query 1: expected an embedding.* got Tensor"),
        ([[1]], [query], [[other]], "documents_embeddings, query 1: expected embeddings of the query's model"),
    ]
    for ids, left, right, message in cases:
        with pytest.raises(InputError, match=f"^{message}"):
            rerank(ids, left, right)
    with pytest.raises(InputError, match="device: expected one of this machine"):
        rerank([[1]], [query], [[document]], device="abacus")
