"""The k best of each mention's own candidates: ``ops.rerank_topk``, and gather + matmul in eager PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.features import CHECKED, SyntheticMentions, synthetic_model
from bench.machine import median_seconds
from bench.memory import peak_memory
from bench.peers import eager_rerank
from m3el_fast import ops
from m3el_fast.index import EntityIndex
from m3el_fast.ops import G2LOperands
from m3el_fast.units import IntraModal, norm_weights

_K = 10
_TOLERANCE = {"fp32": 2e-4, "bf16": 0.1}  # of scores that reach 100
_SIXTH = 1 / 6  # M3EL's union is a mean of three, text and image are means of two, cross of two


class Rerank:
    """``candidates`` random entities, the gold among them, for each of ``mentions`` mentions of an M3EL index;
    ``expected``: file of the reference's scores [CHECKED, E]."""

    def __init__(
        self, index: str, mentions: int, candidates: int, expected: str, precision: ops.Precision = "fp32"
    ) -> None:
        torch.set_grad_enabled(False)
        self.precision, self.expected = precision, torch.load(expected)
        self.model = synthetic_model("m3el")
        self.index = EntityIndex.open(index, self.model)
        source, rows = SyntheticMentions(len(self.index)), torch.arange(mentions)
        self.mentions = self.model.mention_side(source.inputs(rows))
        g = torch.Generator().manual_seed(11)
        scattered = [torch.randperm(len(self.index), generator=g)[:candidates] for _ in range(mentions)]
        self.candidates = torch.stack(scattered)
        self.candidates[:, 0] = source.gold(rows)
        self.mention_coarse, self.entity_coarse, self.parts = self._operands()

    def verify(self) -> None:
        few, scores = slice(0, CHECKED), self.expected
        values, rows = self._best(self.mention_coarse[few], self._mentions(few), self.candidates[few])
        own = scores.gather(1, self.candidates[few]).topk(_K, dim=1).values
        tolerance = _TOLERANCE[self.precision]
        torch.testing.assert_close(values, own, rtol=0, atol=tolerance)
        torch.testing.assert_close(scores.gather(1, rows), own, rtol=0, atol=tolerance)

    def run(self) -> None:
        self._best(self.mention_coarse, self.parts, self.candidates)

    def peak(self) -> int:
        return peak_memory(self.run)

    def bytes_read(self) -> int:
        """Of entity tensors, each candidate's once per mention."""
        read = self.entity_coarse[0].nbytes * self.candidates.numel()
        for part in self.parts:
            rows = self.candidates if part.row is None else part.row[self.candidates]
            each = part.query[0].nbytes + part.gate[0].nbytes
            # mentions come one after another: of the image shared by all without one, one copy a mention is read
            read += sum(len(own.unique()) for own in rows) * each
        return read

    def _best(self, coarse: Tensor, parts: list[G2LOperands], candidates: Tensor) -> tuple[Tensor, Tensor]:
        return ops.rerank_topk(coarse, self.entity_coarse, parts, candidates, _K, precision=self.precision)

    def _operands(self) -> tuple[Tensor, Tensor, list[G2LOperands]]:
        everything = torch.arange(self.index.rows)
        [(_, item, _)] = self.index.items(everything)
        [(_, visual, _)] = self.index.visual(torch.arange(self.index.visual_rows))
        row, m = self.index.image_index, self.mentions
        matcher = self.model.matcher
        assert isinstance(matcher.text, IntraModal) and isinstance(matcher.image, IntraModal)
        names = ("text.global", "cross.t2v", "cross.v2t")
        mention = torch.cat([*(m.item[name] for name in names), m.visual["global"]], dim=1) * _SIXTH
        entity = torch.cat([*(item[name] for name in names), visual["global"][row]], dim=1)
        text = G2LOperands(
            item["text.query"],
            item["text.gate"],
            m.item["text.key"],
            m.item["text.value"],
            norm_weights(matcher.text.norm),
            _SIXTH,
        )
        image = G2LOperands(
            visual["query"],
            visual["gate"],
            m.visual["key"],
            m.visual["value"],
            norm_weights(matcher.image.norm),
            _SIXTH,
            row,
        )
        return mention, entity, [text, image]

    def _mentions(self, few: slice) -> list[G2LOperands]:
        return [part._replace(key=part.key[few], value=part.value[few]) for part in self.parts]


class EagerRerank(Rerank):
    """The same in eager PyTorch on the best of both storage dtypes and of several chunk sizes."""

    CHUNKS = (50, 100, 250, 500, 1000)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.stored, self.chunk = self.parts, 7  # a size that divides nothing, for the check

    def sweep(self) -> list[Any]:
        """The best dtype and chunk size, on a quarter of the mentions, which are worked on one by one."""
        few = slice(0, max(1, len(self.candidates) // 4))
        wide = [part._replace(query=part.query.float(), gate=part.gate.float()) for part in self.stored]
        seconds = {}
        for dtype, parts in (("bf16", self.stored), ("fp32", wide)):
            for chunk in self.CHUNKS:
                self.parts, self.chunk = parts, chunk
                own = self.mention_coarse[few], self._mentions(few), self.candidates[few]
                seconds[dtype, chunk] = median_seconds(partial(self._best, *own), 1)
        dtype, self.chunk = min(seconds, key=lambda form: seconds[form])
        self.parts = wide if dtype == "fp32" else self.stored
        return [dtype, self.chunk]

    def _best(self, coarse: Tensor, parts: list[G2LOperands], candidates: Tensor) -> tuple[Tensor, Tensor]:
        return eager_rerank(coarse, self.entity_coarse, parts, candidates, _K, self.chunk)
