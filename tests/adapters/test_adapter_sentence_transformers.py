"""The CrossEncoder: the real library's parameters and results, and its evaluators."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapters.reranking_cases import NEAR, documents, full_matrix, queries, write_pictures
from m3el_fast.errors import InputError
from m3el_fast.models import MELModel
from tiny import tiny_config, tiny_model

pytest.importorskip("sentence_transformers", reason="the extra sentence-transformers is not installed")

from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.evaluation import (
    CrossEncoderCorrelationEvaluator,
    CrossEncoderRerankingEvaluator,
)

import m3el_fast.adapters.sentence_transformers as adapter
from m3el_fast.adapters.sentence_transformers import M3ELCrossEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def model(folder: Path) -> MELModel:
    return tiny_model(tiny_config(folder))


@pytest.fixture
def ours(model: MELModel) -> M3ELCrossEncoder:
    return M3ELCrossEncoder(model)


class Reading(nn.Module):
    """A CrossEncoder's module whose score of a pair is its second text."""

    def preprocess(self, inputs: list[tuple[str, str]], **_: Any) -> dict[str, Tensor]:
        return {"scores": torch.tensor([[float(text)] for _, text in inputs])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


@pytest.fixture(scope="module")
def theirs() -> CrossEncoder:
    return CrossEncoder(modules=[Reading()], device="cpu", activation_fn=nn.Identity())


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


# -- the real library's interface -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["predict", "rank", "evaluate", "save_pretrained"])
def test_parameters_are_those_of_the_library(method: str) -> None:
    assert parameters(getattr(M3ELCrossEncoder, method)) == parameters(getattr(CrossEncoder, method))


def test_own_parameters_of_the_constructor_are_the_librarys() -> None:
    own = {name: kind for name, kind, _ in parameters(M3ELCrossEncoder.__init__)}
    assert own.items() <= {name: kind for name, kind, _ in parameters(CrossEncoder.__init__)}.items()


PAIRS = [("a", "1"), ("b", "3"), ("c", "2")]
INPUTS: dict[str, Any] = {
    "pair": PAIRS[0],
    "pair as a list": list(PAIRS[0]),
    "pair as an array": np.array(PAIRS[0]),
    "pairs": PAIRS,
    "lists": [list(pair) for pair in PAIRS],
    "tuple of pairs": tuple(PAIRS),
    "array": np.array(PAIRS),
    "one": PAIRS[:1],
    "none": [],
}


@pytest.mark.parametrize("options", [{}, {"convert_to_numpy": False}, {"convert_to_tensor": True}], ids=str)
@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_results_have_the_librarys_types(
    inputs: Any, options: dict[str, bool], ours: M3ELCrossEncoder, theirs: CrossEncoder
) -> None:
    found, expected = ours.predict(inputs, **options), theirs.predict(inputs, **options)
    assert type(found) is type(expected)
    if isinstance(found, list):
        assert [(type(one), one.dtype, one.shape) for one in found] == [
            (type(one), one.dtype, one.shape) for one in expected
        ]
    else:
        assert found.shape == expected.shape
        if found.size if isinstance(found, np.ndarray) else found.numel() if isinstance(found, Tensor) else 1:
            assert found.dtype == expected.dtype  # of nothing the library gives float64


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"return_documents": True}], ids=str)
def test_rank_has_the_librarys_structure(options: dict[str, Any], ours: M3ELCrossEncoder, theirs: CrossEncoder) -> None:
    texts = ["1", "3", "2"]
    found, expected = ours.rank("a", texts, **options), theirs.rank("a", texts, **options)
    assert [[(key, type(value)) for key, value in one.items()] for one in found] == [
        [(key, type(value)) for key, value in one.items()] for one in expected
    ]
    assert all(one.get("text", texts[one["corpus_id"]]) == texts[one["corpus_id"]] for one in found)
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)


def test_attributes(ours: M3ELCrossEncoder, model: MELModel) -> None:
    assert isinstance(ours, CrossEncoder)
    assert ours.model is model and ours.device == torch.device("cpu") and ours.dtype == torch.float32
    assert ours.num_labels == ours.config.num_labels == 1
    assert ours.max_seq_length == 12 and ours.tokenizer is model.encoder.tokenizer
    assert isinstance(ours.activation_fn, nn.Identity)
    assert all(ours.supports(modality) for modality in ("text", "image", ("text", "image")))
    assert not ours.supports("audio")


# -- scores -----------------------------------------------------------------------------------------------------------


def test_predict_and_rank_are_the_full_matrix(folder: Path, ours: M3ELCrossEncoder, model: MELModel) -> None:
    left, right, expected = queries(folder), documents(folder), full_matrix(model.eval(), folder)
    scores = ours.predict([(query, document) for query in left for document in right], batch_size=4)
    assert scores.tolist() == pytest.approx(expected.flatten().tolist(), **NEAR)
    for row, query in enumerate(left):
        ranked = ours.rank(query, right)
        assert sorted(one["corpus_id"] for one in ranked) == list(range(6))
        in_order = [expected[row, one["corpus_id"]].item() for one in ranked]
        assert [one["score"] for one in ranked] == pytest.approx(in_order, **NEAR)
        place = [one["corpus_id"] for one in ranked]
        assert place.index(5) == place.index(0) + 1  # equal documents, the earlier first


def test_predict_leaves_training_mode(folder: Path) -> None:
    model = tiny_model(tiny_config(folder))
    ours = M3ELCrossEncoder(model)
    expected = ours.predict(("a", "b"))
    model.train()
    assert ours.predict(("a", "b")) == expected and not model.training


def test_a_model_that_predict_moves_can_still_be_trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = M3ELCrossEncoder(tiny_model(tiny_config(folder)))
    monkeypatch.setattr(adapter, "named_device", torch.device)
    monkeypatch.setattr(adapter, "score_pairs", lambda *_: torch.zeros(1))
    ours.predict(("a", "b"), device="meta")
    assert all(weight.is_meta and not weight.is_inference() for weight in ours.parameters())


def test_prompts_stand_before_the_querys_text(model: MELModel) -> None:
    ours = M3ELCrossEncoder(model, prompts={"who": "elm mill "}, default_prompt_name=None)
    pairs = [("red", "elm"), ({"text": "blue", "mention": "inn"}, "elm")]
    expected = ours.predict([("elm mill red", "elm"), ("elm mill inn [SEP] blue", "elm")])
    assert not np.allclose(expected, ours.predict(pairs))
    assert np.array_equal(expected, ours.predict(pairs, prompt="elm mill "))
    assert np.array_equal(expected, ours.predict(pairs, prompt_name="who"))
    assert np.array_equal(
        expected, M3ELCrossEncoder(model, prompts=ours.prompts, default_prompt_name="who").predict(pairs)
    )
    with pytest.raises(ValueError, match="nobody"):
        ours.predict(pairs, prompt_name="nobody")


def test_activation(model: MELModel, ours: M3ELCrossEncoder) -> None:
    plain = ours.predict(PAIRS, convert_to_tensor=True)
    assert torch.equal(ours.predict(PAIRS, activation_fn=nn.Tanh(), convert_to_tensor=True), plain.tanh())
    squashed = M3ELCrossEncoder(model, activation_fn=nn.Sigmoid())
    assert torch.equal(squashed.predict(PAIRS, convert_to_tensor=True), plain.sigmoid())
    assert squashed.rank("a", ["1", "2"])[0]["score"] < 1
    assert torch.equal(ours.predict(PAIRS, apply_softmax=True, convert_to_tensor=True), plain)


def test_older_names_of_arguments(ours: M3ELCrossEncoder) -> None:
    assert np.array_equal(ours.predict(sentences=PAIRS, num_workers=2), ours.predict(PAIRS))


def test_a_checkpoint_is_loaded_and_saved(model: MELModel, ours: M3ELCrossEncoder, tmp_path: Path) -> None:
    ours.save_pretrained(str(tmp_path / "checkpoint"))
    again = M3ELCrossEncoder(str(tmp_path / "checkpoint"), device="cpu")
    assert again.model is not model
    assert np.array_equal(again.predict(PAIRS, device="cpu"), ours.predict(PAIRS))


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("text", "^inputs, pair 1: expected a query and a document, got str"),
        ([("a", "b"), ("a", "b", "c")], "^inputs, pair 2: expected a query and a document, got a sequence of 3"),
        ([("a", "b"), ("a", 3)], "^inputs, pair 2, document: expected a string, a PIL image or a mapping"),
        ([("a", "b"), ({"text": 3}, "a")], "^inputs, pair 2, query, field text: expected a string, got int"),
        ([("a", {"image": "no.jpg"})], "^inputs, pair 1, document, field image: expected a readable image, got no.jpg"),
    ],
)
def test_bad_inputs_name_the_pair(inputs: Any, message: str, ours: M3ELCrossEncoder) -> None:
    with pytest.raises(InputError, match=message):
        ours.predict(inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": {}}, "device: expected one device and no pool.* got a pool"),
        ({"device": ["cpu", "cpu"]}, "device: expected one device and no pool"),
        ({"device": "abacus"}, "device: expected one of this machine: cpu"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, Any], message: str, ours: M3ELCrossEncoder) -> None:
    with pytest.raises(InputError, match=message):
        ours.predict(PAIRS, **options)


def test_unknown_arguments_are_refused(ours: M3ELCrossEncoder) -> None:
    with pytest.raises(TypeError, match="processing_kwargs"):
        ours.predict(PAIRS, processing_kwargs={})


# -- evaluators -------------------------------------------------------------------------------------------------------


def test_the_reranking_evaluator(folder: Path, ours: M3ELCrossEncoder, tmp_path: Path) -> None:
    left, right = queries(folder), documents(folder)[:5]
    golds = [0, 3, 2, 4, 1]
    samples = [
        {"query": query, "positive": [right[gold]], "documents": right}
        for query, gold in zip(left, golds, strict=False)
    ]
    evaluator = CrossEncoderRerankingEvaluator(samples, at_k=10, name="tiny")
    found = evaluator(ours, output_path=str(tmp_path))
    ranks = [
        [one["corpus_id"] for one in ours.rank(query, right)].index(gold) + 1
        for query, gold in zip(left, golds, strict=False)
    ]
    assert found["tiny_mrr@10"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert found["tiny_base_mrr@10"] == pytest.approx(np.mean([1 / (gold + 1) for gold in golds]))
    assert ours.evaluate(evaluator) == found
    assert len(set(ranks)) > 1


def test_the_correlation_evaluator(ours: M3ELCrossEncoder) -> None:
    scores = ours.predict(PAIRS).tolist()
    evaluator = CrossEncoderCorrelationEvaluator([list(pair) for pair in PAIRS], scores, name="tiny")
    assert evaluator(ours)["tiny_pearson"] == pytest.approx(1)
