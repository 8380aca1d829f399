"""Computations that another library offers too: the coarse stage, top-k, late interaction (and ``interface.py``).

The libraries are imported where they are called: each is optional.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench import oracle
from bench.cases.forms import Computation, Forms, assert_near
from bench.cases.interface import Interface
from bench.cases.ops import COARSE, G2LScores
from m3el_fast import ops
from m3el_fast.scoring.memory import sizes_on

FAISS, FAISS_HEAPS, MAXSIM = "FAISS IndexFlatIP", "FAISS heaps", "maxsim-cpu"
OURS = "ours"

_COARSE_K, _K = 100, 10
_CHECKED = 4  # mentions whose selection is compared with the reference's
_SPREAD = 0.42  # of vectors whose inner products have a standard deviation of 5, as a trained model's


class CoarseStage(Computation):
    """The 100 best of ``entities`` by inner product for each of ``mentions``, which the first of two stages chooses."""

    FORMS = (FAISS, OURS)

    def __init__(self, mentions: int, entities: int) -> None:
        g = torch.Generator().manual_seed(9)
        self.mention, self.entity = (_SPREAD * torch.randn(n, COARSE, generator=g) for n in (mentions, entities))
        self.forms = {FAISS: self._faiss, OURS: self._ours}
        self.items, self.chunks = dict.fromkeys(self.FORMS, mentions * entities), {}
        few = self.mention[:_CHECKED].double()
        self.exact = torch.cat([few @ block.double().T for block in self.entity.split(8_192)], dim=1)
        self._index: Any = None

    def check(self, form: str, result: Tensor) -> None:
        oracle.check_topk(result[:_CHECKED], self.exact)

    def _faiss(self) -> Tensor:
        if self._index is None:
            import faiss

            faiss.omp_set_num_threads(torch.get_num_threads())
            self._index = faiss.IndexFlatIP(COARSE)
            self._index.add(self.entity.numpy())
        return torch.from_numpy(self._index.search(self.mention.numpy(), _COARSE_K)[1])

    def _ours(self) -> Tensor:
        """As ``scoring.candidates.coarse_topk`` does it, in a scan's blocks, with the vectors of all terms in one."""
        values = torch.full((len(self.mention), _COARSE_K), -torch.inf)
        rows = torch.full(values.shape, -1)
        size = sizes_on(self.mention.device).entities_with(len(self.mention))
        for start in range(0, len(self.entity), size):
            scores = ops.inner_scores(self.mention, self.entity[start : start + size])
            values, rows = ops.topk_merge(values, rows, scores, start)
        return rows


class TopK(Computation):
    """The ten best of given scores ``mentions`` x ``entities``."""

    FORMS = (FAISS_HEAPS, OURS)
    unit = "scores"

    def __init__(self, mentions: int, entities: int) -> None:
        self.scores = torch.randn(mentions, entities, generator=torch.Generator().manual_seed(5))
        self.forms = {FAISS_HEAPS: self._heaps, OURS: lambda: ops.topk(self.scores, _K)[1]}
        self.items, self.chunks = dict.fromkeys(self.FORMS, mentions * entities), {}

    def check(self, form: str, result: Tensor) -> None:
        assert torch.equal(self.scores.gather(1, result), self.scores.sort(dim=1, descending=True).values[:, :_K])

    def _heaps(self) -> Tensor:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        values, ids = np.empty((len(self.scores), _K), np.float32), np.empty((len(self.scores), _K), np.int64)
        heaps = faiss.float_minheap_array_t()
        heaps.nh, heaps.k, heaps.val, heaps.ids = len(values), _K, faiss.swig_ptr(values), faiss.swig_ptr(ids)
        heaps.heapify()
        heaps.addn(self.scores.shape[1], faiss.swig_ptr(self.scores.numpy()))
        heaps.reorder()
        return torch.from_numpy(ids)


class LateInteraction(G2LScores):
    """All pairs' scores from 40 x 40 tokens of 96: MaxSim, which sums the largest product of each of the mention's
    tokens, and G2L, which has a softmax, a mean of values, a LayerNorm and a gate behind the same products."""

    FORMS = (MAXSIM, "G2L, fp32", "G2L, bf16")
    bounds: ClassVar[dict[str, float]] = {"G2L, bf16": G2LScores.bounds["bf16"]}

    def __init__(self, mentions: int, entities: int) -> None:
        super().__init__(mentions, entities, slice_entities=1)
        query, key = self.operands[:2]
        self.forms = {MAXSIM: self._maxsim, "G2L, fp32": self.forms["fp32"], "G2L, bf16": self.forms["bf16"]}
        self.items, self.chunks = dict.fromkeys(self.FORMS, mentions * entities), {}
        rows, columns = self.exact.shape
        products = torch.einsum("mkd,eqd->mekq", key[:rows].double(), query[:columns].double())
        self.maxsim = products.amax(dim=-1).sum(dim=-1)

    def check(self, form: str, result: Tensor) -> None:
        if form == MAXSIM:
            assert_near(result[: len(self.maxsim), : self.maxsim.shape[1]], self.maxsim, 1e-4)
        else:
            super().check(form, result)

    def _maxsim(self) -> Tensor:
        import maxsim_cpu

        query, key = (operand.numpy() for operand in self.operands[:2])
        return torch.from_numpy(np.stack([maxsim_cpu.maxsim_scores(one, query) for one in key]))


class Libraries(Forms):
    """See README.md for what each peer does less or more than ours."""

    COMPUTATIONS: ClassVar[dict[str, type[Computation]]] = {
        "coarse stage, top 100": CoarseStage,
        "top 10 of scores": TopK,
        "late interaction, 40 x 40 tokens": LateInteraction,
        "interface": Interface,
    }
