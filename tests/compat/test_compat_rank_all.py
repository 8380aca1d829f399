"""``rank_all`` against the released loop's full matrix of scores, ties, streams, refusals."""

from __future__ import annotations

import copy
import re
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compat.released_args import encoded, forward_order, m3el_args, mimic_args
from m3el_fast.compat import M3ELMatcher, MIMICMatcher, PreparedEntities, feature_index, rank_all, ranking
from m3el_fast.errors import InputError
from m3el_fast.scorer import Scorer
from planted import check_ranks, check_topk

MODELS = {"t2v-only": False, "bidirectional": True, "mimic": None}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[M3ELMatcher | MIMICMatcher, bool]:
    torch.manual_seed(3)
    bidirection = MODELS[request.param]
    matcher = MIMICMatcher(mimic_args()) if bidirection is None else M3ELMatcher(m3el_args())
    with torch.no_grad():
        for p in matcher.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return matcher, bool(bidirection)


ENTITIES = 61


def entities_with_twins() -> tuple[list[Tensor], Tensor]:
    """Entities of which every fifth has the image of the first; the last seven are those before them once more.

    Returns also a key [E], equal exactly where entities are.
    """
    entities = encoded(ENTITIES, 0)
    for place in (1, 3):
        entities[place][::5] = entities[place][0]
    for tensor in entities:
        tensor[-7:] = tensor[-14:-7]
    key = torch.arange(ENTITIES)
    key[-7:] = key[-14:-7]
    return entities, key


def released_scores(
    matcher: M3ELMatcher | MIMICMatcher, bidirection: bool, entities: list[Tensor], mentions: list[Tensor]
) -> Tensor:
    """[M, E] fp64 of the matcher itself."""
    given = [t.double() for t in forward_order(entities, mentions)]
    flags = {} if isinstance(matcher, MIMICMatcher) else {"bidirection": bidirection}
    scores: Tensor = copy.deepcopy(matcher).double()(*given, **flags)[0].detach()
    return scores


@pytest.mark.parametrize("split", [ENTITIES, 10, 1])
def test_ranks_best_and_scores(
    case: tuple[M3ELMatcher | MIMICMatcher, bool], split: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher, bidirection = case
    entities, key = entities_with_twins()
    mentions, gold = encoded(13, 1), torch.arange(13) * 47 % ENTITIES
    gold[:2] = torch.tensor([ENTITIES - 1, ENTITIES - 8])  # twins
    monkeypatch.setattr(feature_index, "_SEGMENT", 16)
    monkeypatch.setattr(ranking, "_BATCH", 7)
    blocks = entities if split == ENTITIES else zip(*(t.split(split) for t in entities), strict=True)
    found = rank_all(matcher, mentions, blocks, gold, bidirection=bidirection, k=9, scores=True, progress=False)
    expected = released_scores(matcher, bidirection, entities, mentions)
    live = torch.ones(ENTITIES, dtype=torch.bool)
    assert found.scores is not None and found.best is not None
    # fp32 against fp64, scores to 60
    torch.testing.assert_close(found.scores.double(), expected, rtol=1e-4, atol=1e-4)
    check_ranks(found.rank, gold, expected, key, live)
    check_topk(found.best.rows, expected, live)
    assert found.components.keys() == {"text", "image", "cross"}
    assert (found.rank[:2] % 1 == 0.5).all()


def test_ties_are_counted_half_and_by_component() -> None:
    matcher, mentions = M3ELMatcher(m3el_args()), encoded(3, 1)
    entities = [t[:1].expand(9, *t.shape[1:]).contiguous() for t in encoded(1, 0)]
    found = rank_all(matcher, mentions, entities, [0, 4, 8], progress=False)
    assert found.rank.tolist() == [5, 5, 5]
    assert all(part.tolist() == [5, 5, 5] for part in found.components.values())
    assert found.best is None and found.scores is None


def test_the_released_loop_on_untied_scores(case: tuple[M3ELMatcher | MIMICMatcher, bool]) -> None:
    matcher, bidirection = case
    entities, mentions, gold = encoded(40, 0), encoded(11, 1), torch.arange(11)
    scores = released_scores(matcher, bidirection, entities, mentions)
    loop = scores.argsort(dim=-1, descending=True).argsort(dim=-1) + 1  # as the released evaluation has it
    found = rank_all(matcher, mentions, entities, gold.tolist(), bidirection=bidirection, progress=False)
    assert found.rank.tolist() == loop[torch.arange(11), gold].tolist()


def test_an_entity_prepared_once_serves_many_calls() -> None:
    torch.manual_seed(0)
    matcher = M3ELMatcher(m3el_args())
    entities, mentions, gold = encoded(30, 0), encoded(12, 1), torch.arange(12)
    prepared = PreparedEntities(matcher, entities, progress=False)
    assert len(prepared) == 30
    whole = rank_all(matcher, mentions, entities, gold, progress=False)
    parts = [
        rank_all(matcher, [t[own] for t in mentions], prepared, gold[own], progress=False)
        for own in torch.arange(12).split(5)
    ]
    assert torch.cat([part.rank for part in parts]).tolist() == whole.rank.tolist()
    with pytest.raises(InputError, match="bidirection: expected False, as when the entities were prepared, got True"):
        rank_all(matcher, mentions, prepared, gold, bidirection=True)
    with torch.no_grad():
        matcher.timm.fc_key.weight[0, 0] += 1
    with pytest.raises(InputError, match="prepared with the matcher's weights, got other weights"):
        rank_all(matcher, mentions, prepared, gold)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_ranked_in_fp32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matcher = M3ELMatcher(m3el_args()).to(dtype)
    entities, mentions = ([t.to(dtype) for t in encoded(n, n)] for n in (20, 6))
    found = rank_all(matcher, mentions, entities, list(range(6)), scores=True, progress=False)
    expected = released_scores(matcher, False, entities, mentions)
    assert found.scores is not None
    torch.testing.assert_close(found.scores.double(), expected, rtol=1e-4, atol=1e-4)


def test_autocast_changes_nothing() -> None:
    torch.manual_seed(0)
    matcher, entities, mentions = M3ELMatcher(m3el_args()), encoded(20, 0), encoded(6, 1)
    expected = rank_all(matcher, mentions, entities, list(range(6)), scores=True, progress=False).scores
    with torch.autocast("cpu", torch.bfloat16):
        found = rank_all(matcher, mentions, entities, list(range(6)), scores=True, progress=False).scores
    assert found is not None and expected is not None
    assert torch.equal(found, expected)


def test_entities_prepared_in_inference_mode_serve_outside() -> None:
    matcher, entities, mentions = M3ELMatcher(m3el_args()), encoded(20, 0), encoded(6, 1)
    with torch.inference_mode():
        prepared = PreparedEntities(matcher, ([t * 1 for t in entities] for _ in range(1)), progress=False)
    found = rank_all(matcher, mentions, prepared, list(range(6)), progress=False)
    assert found.rank.tolist() == rank_all(matcher, mentions, entities, list(range(6)), progress=False).rank.tolist()
    assert all(not p.is_inference() for p in matcher.parameters())


def test_streamed_blocks_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_index, "_SEGMENT", 8)
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def stream() -> Iterator[list[Tensor]]:
        nonlocal most
        for seed in range(12):
            block = encoded(4, seed)
            alive.append(weakref.ref(block[2]))
            most = max(most, sum(one() is not None for one in alive))
            yield block

    rank_all(M3ELMatcher(m3el_args()), encoded(2, 99), stream(), [0, 47], progress=False)
    assert len(alive) == 12
    assert most <= 2


def test_files_end_with_their_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    matcher, mentions = M3ELMatcher(m3el_args()), encoded(2, 1)
    prepared = PreparedEntities(matcher, encoded(5, 0), progress=False)
    assert list(tmp_path.iterdir())
    rank_all(matcher, mentions, prepared, [0, 1], progress=False)
    del prepared
    assert not list(tmp_path.iterdir())
    with PreparedEntities(matcher, encoded(5, 0), progress=False):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def _interrupted() -> Iterator[list[Tensor]]:
    yield encoded(5, 0)
    raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["stream", "ranking", "entities"])
def test_files_end_with_an_error(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the traceback is kept, as a notebook does."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    entities: list[Tensor] | Iterator[list[Tensor]] = encoded(5, 0)
    if place == "stream":
        entities = _interrupted()
    elif place == "entities":
        entities[3][3, 2, 1] = torch.nan
    else:
        monkeypatch.setattr(Scorer, "ranks", _interrupt)
    with pytest.raises(InputError if place == "entities" else KeyboardInterrupt) as kept:
        rank_all(M3ELMatcher(m3el_args()), encoded(2, 1), entities, [0, 1], progress=False)
    assert not list(tmp_path.iterdir())
    if place == "entities":
        assert re.match(r"entity '3', [\w.]+: expected finite features, got nan", str(kept.value))


def test_no_mention() -> None:
    found = rank_all(M3ELMatcher(m3el_args()), encoded(0, 0), encoded(5, 1), [], k=2, scores=True, progress=False)
    assert found.scores is not None and found.best is not None
    assert found.rank.shape == (0,) and found.scores.shape == (0, 5) and found.best.rows.shape == (0, 2)


def _never() -> Iterator[list[Tensor]]:
    raise AssertionError("entities were read")
    yield


@pytest.mark.parametrize(
    ("mentions", "answer", "message"),
    [
        (encoded(2, 0)[:3], [0, 1], r"mentions: expected four tensors, text_embeds, .*, got 3 of Tensor"),
        ([t.numpy() for t in encoded(2, 0)], [0, 1], r"mentions: expected four tensors, .*, got 4 of ndarray"),
        ([*reversed(encoded(2, 0))], [0, 1], r"mentions, text_embeds: expected shape \[n, 32\], got \[2, 6, 16\]"),
        (encoded(2, 0), [0], r"answer: expected one row for each of 2 mentions, got 1"),
        (encoded(2, 0), [0.0, 1.0], r"answer: expected a vector of whole numbers"),
        (encoded(2, 0), [0, None], r"answer: expected a vector of whole numbers"),
        (encoded(2, 0), [0, -1], r"answer, mention 2: expected a row of the entities, at least 0, got -1"),
        (
            [*encoded(600, 0)[:3], encoded(600, 0)[3].index_fill(0, torch.tensor([555]), torch.nan)],
            [0] * 600,
            r"mentions, image_patch_tokens, mention 556: expected finite features, got NaN or infinity",
        ),
    ],
)
def test_wrong_mentions_are_refused_before_the_entities_are_read(
    mentions: list[Tensor], answer: list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        rank_all(M3ELMatcher(m3el_args()), mentions, _never(), answer)
    with pytest.raises(InputError, match="k: expected at least 1, got 0"):
        rank_all(M3ELMatcher(m3el_args()), encoded(2, 0), _never(), [0, 1], k=0)


def test_rows_that_four_tensors_do_not_have_are_refused_before_they_are_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking, "PreparedEntities", type("Never", (PreparedEntities,), {"__init__": _interrupt}))
    matcher, mentions, entities = M3ELMatcher(m3el_args()), encoded(2, 0), encoded(5, 1)
    with pytest.raises(InputError, match=r"answer, mention 2: expected a row of the entities, 0 to 4, got 5"):
        rank_all(matcher, mentions, entities, [0, 5])
    with pytest.raises(InputError, match=r"k: expected 1 to 5 \(the number of entities\), got 6"):
        rank_all(matcher, mentions, entities, [0, 4], k=6)


def test_refusals() -> None:
    matcher, mentions, entities = M3ELMatcher(m3el_args()), encoded(2, 0), encoded(5, 1)
    with pytest.raises(InputError, match=r"answer, mention 2: expected a row of the entities, 0 to 4, got 5"):
        rank_all(matcher, mentions, iter([entities]), [0, 5])
    with pytest.raises(InputError, match=r"answer, mention 1: expected a row of the entities, 0 to 4, got -1"):
        rank_all(matcher, mentions, entities, [-1, 4])
    with pytest.raises(InputError, match=r"k: expected 1 to 5 \(the number of entities\), got 6"):
        rank_all(matcher, mentions, iter([entities]), [0, 4], k=6)
    with pytest.raises(InputError, match=r"entities: expected at least one, got 0"):
        rank_all(matcher, mentions, encoded(0, 1), [0, 4])
    with pytest.raises(InputError, match=r"entities, block 2, image_embeds: expected shape"):
        rank_all(matcher, mentions, iter([entities, _cut(entities)]), [0, 4])
    with pytest.raises(InputError, match=r"bidirection: expected False: MIMIC has one form, got True"):
        rank_all(MIMICMatcher(mimic_args()), mentions, entities, [0, 4], bidirection=True)


def _cut(block: list[Tensor]) -> list[Tensor]:
    text, image, *tokens = block
    return [text, image[:-1], *tokens]
