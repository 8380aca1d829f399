"""The rerankers library's ranker: its documents, its results, and the model's scores."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapters.reranking_cases import NEAR, full_matrix, queries, write_pictures
from m3el_fast.errors import InputError
from m3el_fast.models import MELModel
from tiny import tiny_config, tiny_model

pytest.importorskip("rerankers", reason="the extra rerankers is not installed")

from rerankers import Document
from rerankers.models.ranker import BaseRanker
from rerankers.results import RankedResults, Result

from m3el_fast.adapters.rerankers import M3ELRanker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def model(folder: Path) -> MELModel:
    return tiny_model(tiny_config(folder)).eval()


@pytest.fixture(scope="module")
def ranker(model: MELModel) -> M3ELRanker:
    return M3ELRanker(model, verbose=0)


def in_base64(colour: str) -> str:
    data = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def documents(folder: Path) -> list[str | Document]:
    """Those of ``reranking_cases``, as this library's: with a path, none, in base64, a picture alone."""
    red = str(folder / "red.png")
    return [
        Document("Elm inn [SEP] Known for inn 0", image_path=red, doc_id="with red", metadata={"page": 3}),
        "Elm inn [SEP] Known for inn 0",
        "Elm school",
        Document("Elm mill", base64=in_base64("green"), image_path="base64 counts"),
        Document(document_type="image", base64=in_base64("blue")),
        Document("Elm inn [SEP] Known for inn 0", document_type="image", image_path=str(folder / "twin.png")),
    ]


def test_rank_gives_the_full_matrix_in_the_librarys_results(folder: Path, model: MELModel, ranker: M3ELRanker) -> None:
    expected = full_matrix(model, folder)
    given = documents(folder)
    for row, query in enumerate(queries(folder)):
        found = ranker.rank(query, given)
        assert isinstance(found, RankedResults) and found.has_scores and found.query is query
        assert found.results_count() == 6 and all(isinstance(one, Result) for one in found)
        places = [{"with red": 0}.get(one.doc_id, one.doc_id) for one in found]
        assert sorted(places) == list(range(6))
        assert [one.score for one in found] == pytest.approx(expected[row, places].tolist(), **NEAR)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        assert [one.rank for one in found] == [1, 2, 3, 4, 5, 6]
        assert places.index(5) == places.index(0) + 1  # equal documents, the earlier first
        assert found.get_score_by_docid("with red") == found.top_k(6)[places.index(0)].score
        assert found.get_result_by_docid("with red").page == 3
    assert given[3].doc_id is None  # results hold copies


def test_ids_and_metadata(folder: Path, ranker: M3ELRanker) -> None:
    given = documents(folder)
    found = ranker.rank("Elm", given, doc_ids=list("abcdef"), metadata=[{"n": n} for n in range(6)])
    assert sorted((one.doc_id, one.n) for one in found) == [(letter, n) for n, letter in enumerate("abcdef")]
    assert given[0].doc_id == "with red" and given[0].metadata == {"page": 3}
    assert [one.doc_id for one in ranker.rank("Elm", "one text")] == [0]
    assert [one.text for one in ranker.rank("Elm", Document("one", doc_id=7))] == ["one"]


def test_score(folder: Path, ranker: M3ELRanker) -> None:
    given = documents(folder)
    found = ranker.rank("Elm mill", given, doc_ids=[0, 1, 2, 3, 4, 5])
    for place, document in enumerate(given):
        score = ranker.score("Elm mill", document)
        assert type(score) is float
        assert score == pytest.approx(found.get_score_by_docid(place), **NEAR)


def test_nothing_to_rank(ranker: M3ELRanker) -> None:
    assert ranker.rank("Elm", []).results == []


def test_async(folder: Path, ranker: M3ELRanker) -> None:
    found = asyncio.run(ranker.rank_async("Elm", ["a", "b"], ["x", "y"]))
    expected = ranker.rank("Elm", ["a", "b"], ["x", "y"])
    assert [(one.doc_id, one.score) for one in found] == [(one.doc_id, one.score) for one in expected]


def test_the_librarys_interface() -> None:
    assert issubclass(M3ELRanker, BaseRanker)
    for method in ("rank", "score"):
        own, base = (inspect.signature(getattr(kind, method)).parameters for kind in (M3ELRanker, BaseRanker))
        kept = [(p.name, p.default) for p in base.values()]
        assert [(p.name, p.default) for p in own.values()][: len(kept)] == kept


def test_a_checkpoint_is_loaded(
    model: MELModel, ranker: M3ELRanker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "checkpoint")
    opened = M3ELRanker(str(tmp_path / "checkpoint"), device="cpu")
    assert f"Loading model {tmp_path / 'checkpoint'}" in capsys.readouterr().out
    assert opened.device.type == "cpu"
    assert opened.score("Elm", "a mill") == ranker.score("Elm", "a mill")
    assert "encoding" in capsys.readouterr().err
    ranker.score("Elm", "a mill")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("docs", "options", "message"),
    [
        (["a", 3], {}, "^docs, document 2: expected a string or a Document, got int"),
        (["a", Document(document_type="image")], {}, '^docs, document 2: expected "text" or "image", got neither'),
        ([Document("a", base64="é")], {}, "^docs, document 1, field base64: expected an image file in base64"),
        ([Document("a", base64="AAAA")], {}, "^docs, document 1, field image: expected a readable image"),
        ([Document("a", image_path="no.jpg")], {}, "^docs, document 1, field image: .* got no.jpg: no such file"),
        (["a", "b"], {"doc_ids": [1]}, "^doc_ids: expected one for each of 2 documents, got 1"),
        (["a"], {"metadata": []}, "^metadata: expected one for each of 1 documents, got 0"),
    ],
)
def test_bad_documents_are_named(docs: Any, options: dict[str, Any], message: str, ranker: M3ELRanker) -> None:
    with pytest.raises(InputError, match=message):
        ranker.rank("Elm", docs, **options)


def test_a_bad_query_is_named(ranker: M3ELRanker) -> None:
    with pytest.raises(InputError, match=r"^query, field text: expected a string, got int"):
        ranker.rank({"text": 3}, ["a"])
