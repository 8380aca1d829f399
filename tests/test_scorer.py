"""From a data set through an index to ranks and the best k: as the full matrix of the model itself, in every form."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch

from m3el_fast.dataset import Dataset, load_dataset
from m3el_fast.errors import InputError
from m3el_fast.evaluate import evaluate, rank_split
from m3el_fast.features import Scores
from m3el_fast.index import EntityIndex
from m3el_fast.models import MELModel, load_model
from m3el_fast.scorer import Scorer
from m3el_fast.train import make_model
from tiny import tiny_config, write_tiny
from trained import Trained, trained_in

FORMS = {
    "m3el": {},
    "released": {"union": "released", "icl_variant": "released"},
    "t2v-only": {"cross_form": "t2v", "union": "released"},
    "masked": {"token_mask": True},
    "max-pooling": {"pooling": "max"},
    "independent": {"intra_modal": "independent"},
    "text": {"image": False, "cross": False},
    "image": {"text": False, "cross": False},
    "mimic": {"type": "mimic"},
}


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield from trained_in(tmp_path_factory.mktemp("trained"))


def prepare(folder: Path, form: str) -> tuple[MELModel, Dataset]:
    config = tiny_config(folder, FORMS[form])
    torch.manual_seed(1)
    model = make_model(config)
    return model.eval(), load_dataset(config.data, folder, model.encoder, ["test"], progress=False)


def fp32_index(model: MELModel, data: Dataset) -> EntityIndex:
    return EntityIndex.build(model, data.entities, dtype="fp32", precision="fp32", progress=False)


def whole_matrix(model: MELModel, data: Dataset) -> Scores:
    with torch.inference_mode():
        entities = model.features(data.entities.inputs(torch.arange(len(data.entities))))
        mentions = model.features(data.splits["test"].source.inputs(torch.arange(len(data.splits["test"].gold))))
        scores: Scores = model.matcher(entities, mentions)
    return scores


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [1, 5, 100])
def test_streamed_topk_equals_the_whole_matrix(data_folder: Path, form: str, block: int) -> None:
    model, data = prepare(data_folder, form)
    index = fp32_index(model, data)
    source = data.splits["test"].source
    with torch.inference_mode():
        side = model.mention_side(source.inputs(torch.arange(len(source))))
    best = Scorer(model, index, block=block).topk(side, 12)
    expected = whole_matrix(model, data)
    # fp32 rounding of scores near 10 in matrix products of other shapes
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    assert best.scores.keys() == {name for name, value in vars(expected).items() if value is not None}
    for name, values in best.scores.items():
        torch.testing.assert_close(values, getattr(expected, name).gather(1, best.rows), **tolerance)
    assert (best.scores["union"].diff(dim=1) <= 0).all()
    assert best.rows.sort(dim=1).values.tolist() == [list(range(12))] * len(source)


@pytest.mark.parametrize("form", FORMS)
def test_streamed_ranks_equal_the_whole_matrix(data_folder: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = prepare(data_folder, form)
    split = data.splits["test"]
    index = fp32_index(model, data)
    monkeypatch.setattr(Scorer, "batch", 7)
    ranks = rank_split(Scorer(model, index), split, progress=False)
    for name, found in ranks.items():
        score = getattr(whole_matrix(model, data), name).double()
        own = score.gather(1, split.gold[:, None])
        # equal inputs give equal scores up to rounding, and here nothing else comes this close
        level = (score - own).abs() < 1e-5
        expected = 1 + ((score > own) & ~level).sum(1) + (level.sum(1) - 1) / 2
        assert found.tolist() == expected.tolist(), name


def test_identical_entities_share_their_rank(data_folder: Path) -> None:
    model, data = prepare(data_folder, "m3el")
    split = data.splits["test"]
    index = EntityIndex.build(model, data.entities, progress=False)
    ranks = rank_split(Scorer(model, index), split, progress=False)["union"]
    twin = (split.gold == 8) | (split.gold == 9)
    assert (ranks[twin] % 1 == 0.5).all()
    assert (ranks[~twin] % 1 == 0).all()


def test_ranks_of_the_image_component_count_half_of_all_equal_images(data_folder: Path) -> None:
    model, data = prepare(data_folder, "image")
    index = EntityIndex.build(model, data.entities, progress=False)
    ranks = rank_split(Scorer(model, index), data.splits["test"], progress=False)
    for gold, rank in zip(data.splits["test"].gold.tolist(), ranks["image"].tolist(), strict=True):
        equals = 4 if gold in (0, 4, 8, 9) else 2  # by tiny.py: four red pictures, two of each other kind
        assert int((index.image_index == index.image_index[gold]).sum()) == equals
        assert (rank - (equals - 1) / 2) % 1 == 0


def test_an_index_of_another_model_is_refused(data_folder: Path) -> None:
    model, data = prepare(data_folder, "m3el")
    index = EntityIndex.build(model, data.entities, progress=False)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.matcher.text_global_norm.weight[0] += 1e-3
    Scorer(copy.deepcopy(model), index)
    with pytest.raises(InputError, match="model"):
        Scorer(other, index)


def test_a_removed_entity_never_comes_back(data_folder: Path) -> None:
    model, data = prepare(data_folder, "m3el")
    ids = [entity.qid for entity in data.kb.entities]
    index = EntityIndex.build(model, data.entities, data_folder.parent / "index", ids=ids, progress=False)
    source = data.splits["test"].source
    with torch.inference_mode():
        side = model.mention_side(source.inputs(torch.arange(len(source))))
    before = Scorer(model, index).topk(side, 12)
    index.remove(["Q8", "Q3"])
    index = EntityIndex.open(data_folder.parent / "index", model)
    scorer = Scorer(model, index, block=5)
    after = scorer.topk(side, 10)
    kept = [[row for row in rows if row not in (8, 3)] for rows in before.rows.tolist()]
    assert after.rows.tolist() == kept
    assert scorer.scores(side).shape == (len(source), 10)
    ranks = scorer.ranks(side, torch.full((len(source),), 9))  # its twin is gone
    assert (ranks["union"] % 1 == 0).all()
    with pytest.raises(InputError, match=r"candidates, mention 1: expected ids of entities in the index, got 'Q8'"):
        scorer.topk(side, 1, [["Q8"]] * len(source))


@pytest.mark.parametrize("split", ["test", "train"])
def test_metrics_of_a_bf16_index_are_those_of_an_fp32_one(trained: Trained, split: Literal["test", "train"]) -> None:
    model = load_model(trained.checkpoint)
    data = load_dataset(model.config.data, trained.data, model.encoder, [split], progress=False)
    metrics = []
    for dtype in ("bf16", "fp32"):
        index = EntityIndex.build(model, data.entities, dtype=dtype, progress=False)
        metrics.append(evaluate(Scorer(model, index), data.splits[split], progress=False))
    for name, bf16 in metrics[0].items():
        fp32 = metrics[1][name]
        assert bf16.hits == pytest.approx(fp32.hits, abs=2 / fp32.count), name
        assert bf16.mrr == pytest.approx(fp32.mrr, abs=0.02), name
