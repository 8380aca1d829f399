"""What a call costs beside its kernels: reranking given candidates through the interfaces, with models of no size."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bench import oracle
from bench.cases.forms import Computation, assert_near
from m3el_fast.config import EncoderConfig, M3ELConfig, RunConfig, ScratchCLIP
from m3el_fast.data.layout import Entity, KnowledgeBase
from m3el_fast.data.tokenizer import train_tokenizer
from m3el_fast.dataset import mention_source, open_images
from m3el_fast.encoder import Encoder
from m3el_fast.link import Linker
from m3el_fast.link_input import parse_mention
from m3el_fast.models import MELModel, build_model

CROSS_ENCODER, SCORER, LINKER = "CrossEncoder.predict", "Scorer.topk", "Linker.link"
ADAPTER = "M3ELCrossEncoder.predict"

_K = 10
_ROUNDED = 1e-3  # scores from features in fp32 against those of the index in bf16


class Interface(Computation):
    """``candidates`` of ``entities`` entities, given by their ids or texts, for each of ``mentions`` mentions.

    The CrossEncoder's model reads the score from the pair and computes nothing; ours is M3EL with towers and vectors of
    8, 8 text tokens and no pictures. ``Linker.link`` also tokenizes and encodes the mentions; ``Scorer.topk`` is given
    them encoded. Both return the ten best with component scores; ``predict`` returns one score a pair, ours without an
    index: it tokenizes and encodes the entities too.
    """

    FORMS = (CROSS_ENCODER, SCORER, LINKER, ADAPTER)
    unit: ClassVar[str] = "pairs"

    def __init__(self, mentions: int, entities: int, candidates: int) -> None:
        g = torch.Generator().manual_seed(12)
        self._rows = torch.stack([torch.randperm(entities, generator=g)[:candidates] for _ in range(mentions)])
        self._expected = torch.rand(mentions * candidates, generator=g)
        self._pairs = [("a mention of something", repr(score)) for score in self._expected.tolist()]
        model = _smallest_model()
        kb = [Entity(f"Q{i}", f"{i}", f"the number {i}", None, ()) for i in range(entities)]
        self._linker = Linker(model, KnowledgeBase(Path(), kb))
        self._records = [{"mention": f"{i}", "sentence": f"about {i}"} for i in range(mentions)]
        self._ids = [[f"Q{row}" for row in rows] for rows in self._rows.tolist()]
        queries = [{"mention": f"{i}", "text": f"about {i}"} for i in range(mentions)]
        documents = [{"name": one.name, "text": one.attr} for one in kb]
        self._documents = [(queries[i], documents[row]) for i, rows in enumerate(self._rows.tolist()) for row in rows]
        given = [parse_mention(record, "mention") for record in self._records]
        source = mention_source(given, model.encoder, open_images([], model.encoder, False, False))
        self._side = model.mention_side(source.inputs(torch.arange(mentions)))
        self.forms = {CROSS_ENCODER: self._predict, SCORER: self._topk, LINKER: self._link, ADAPTER: self._predict_ours}
        self.items, self.chunks = dict.fromkeys(self.FORMS, mentions * candidates), {}
        self._encoder: Any = None
        self._adapter: Any = None

    def check(self, form: str, result: Any) -> None:
        if form == CROSS_ENCODER:
            assert np.array_equal(result, self._expected.numpy())
            return
        scores = oracle.all_scores(self._linker.model.matcher, self._side, self._linker.index)
        if form == ADAPTER:
            assert_near(torch.from_numpy(result), scores.gather(1, self._rows).flatten(), _ROUNDED)
            return
        given = self._rows[:, None] == result[:, :, None]  # [M, k, C]
        assert given.any(dim=2).all()
        oracle.check_topk(given.int().argmax(dim=2), scores.gather(1, self._rows))

    def _predict(self) -> Any:
        if self._encoder is None:
            from sentence_transformers import CrossEncoder

            self._encoder = CrossEncoder(modules=[_ReadScore()], device="cpu", activation_fn=nn.Identity())
        return self._encoder.predict(self._pairs)

    def _predict_ours(self) -> Any:
        if self._adapter is None:
            from m3el_fast.adapters.sentence_transformers import M3ELCrossEncoder

            self._adapter = M3ELCrossEncoder(self._linker.model)
        return self._adapter.predict(self._documents)

    def _topk(self) -> Tensor:
        return self._linker.scorer.topk(self._side, _K, self._ids).rows

    def _link(self) -> Tensor:
        links = self._linker.link(self._records, _K, self._ids)
        return torch.tensor([[int(one["id"][1:]) for one in own] for own in links])


class _ReadScore(nn.Module):
    """A model of pairs whose score is its second text."""

    def preprocess(self, inputs: list[tuple[str, str]], **_: Any) -> dict[str, Tensor]:
        return {"scores": torch.tensor([[float(text)] for _, text in inputs])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def _smallest_model() -> MELModel:
    torch.manual_seed(43)
    sizes = ScratchCLIP(
        vocab_size=300,
        text_width=8,
        text_layers=1,
        text_heads=1,
        vision_width=8,
        vision_layers=1,
        vision_heads=1,
        projection_dim=8,
        image_size=8,
        patch_size=8,
    )
    config = RunConfig(model=M3ELConfig(d=8), encoder=EncoderConfig(scratch=sizes, max_text_tokens=8, dv=8))
    words = train_tokenizer(["about the number 0 1 2 3 4 5 6 7 8 9"], 300)
    return build_model(config, Encoder.create(config.encoder, words)).eval().requires_grad_(False)
