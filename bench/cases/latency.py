"""One mention: its encoding, and its best ten of all entities, first and later."""

from __future__ import annotations

import copy
import time

import torch

from bench import oracle
from bench.features import CHECKED, SyntheticMentions, synthetic_model
from bench.memory import peak_memory
from bench.test_encode_kb import TINY, VIT_B_32, RandomKB
from m3el_fast.config import EncoderConfig, M3ELConfig, RunConfig, ScratchCLIP
from m3el_fast.data.tokenizer import train_tokenizer
from m3el_fast.encoder import Encoder
from m3el_fast.index import EntityIndex
from m3el_fast.models import build_model
from m3el_fast.scorer import Scorer

_K = 10
_MENTIONS = 16  # calls take them in turn
_COARSE = ("text.global", "cross.t2v", "cross.v2t")


class Linking:
    """The best ten of one mention at a time in an M3EL index.

    Args:
        index: its folder; entities: how many it holds.
        candidates: of the first of two stages; None = the exact scan.
        expected: file of the reference's scores [CHECKED, E].
    """

    def __init__(self, index: str, entities: int, candidates: int | None, expected: str) -> None:
        torch.set_grad_enabled(False)
        self.candidates, self.model = candidates, synthetic_model("m3el")
        sides = self.model.mention_side(SyntheticMentions(entities).inputs(torch.arange(_MENTIONS)))
        self.mentions = [sides.take(slice(i, i + 1)) for i in range(_MENTIONS)]
        self.next, self.expected = 0, torch.load(expected)
        start = time.perf_counter()
        self.index = EntityIndex.open(index, self.model)
        self.scorer = Scorer(self.model, self.index)
        self.run()
        self.first = time.perf_counter() - start

    def cold(self) -> float:
        """Seconds from opening the index to the first answer of this process: modules, weights and mention are there,
        the index's files are in the page cache."""
        return self.first

    def verify(self) -> None:
        """Scores, and for the exact scan the choice, are the reference's."""
        for side, scores in zip(self.mentions[:CHECKED], self.expected.split(1), strict=True):
            best = self.scorer.topk(side, _K, self.candidates)
            torch.testing.assert_close(best.scores["union"], scores.gather(1, best.rows), rtol=0, atol=oracle.LEVEL)
            if self.candidates is None:
                oracle.check_topk(best.rows, scores)

    def run(self) -> float:
        """Seconds of one call."""
        side = self.mentions[self.next % _MENTIONS]
        self.next += 1
        start = time.perf_counter()
        self.scorer.topk(side, _K, self.candidates)
        return time.perf_counter() - start

    def peak(self) -> int:
        return peak_memory(self.run)

    def bytes_read(self) -> int:
        """Of the index by one call, at least: all tensors, or in two stages the coarse ones and the candidates."""
        nothing = torch.zeros(1, dtype=torch.int64)
        (_, item, _), (_, visual, _) = next(self.index.items(nothing)), next(self.index.visual(nothing))
        whole = sum(tensor.nbytes for tensor in [*item.values(), *visual.values()])
        if self.candidates is None:
            return whole
        coarse = sum(item[name].nbytes for name in _COARSE) + visual["global"].nbytes
        return coarse + (whole - coarse) * min(self.candidates, self.index.rows) // self.index.rows

    def images_per_entity(self) -> float:
        return self.index.visual_rows / self.index.rows


class Encoding:
    """A mention with a text and an image through CLIP's towers (ViT-B/32, or ``tiny`` ones; random weights), the
    projections and the matcher's mention side."""

    def __init__(self, tiny: bool) -> None:
        self.sizes = sizes = TINY if tiny else VIT_B_32
        scratch = ScratchCLIP(
            text_width=sizes.text_width,
            text_layers=sizes.layers,
            text_heads=sizes.text_width // 64,
            vision_width=sizes.vision_width,
            vision_layers=sizes.layers,
            vision_heads=sizes.vision_width // 64,
            patch_size=sizes.patch_size,
            image_size=sizes.image_size,
            projection_dim=sizes.text_width,
        )
        config = RunConfig(
            model=M3ELConfig.paper(), encoder=EncoderConfig(scratch=scratch, max_text_tokens=sizes.tokens)
        )
        torch.manual_seed(5)
        tokenizer = train_tokenizer([f"word {i} and other words" for i in range(200)], 400)
        self.model = build_model(config, Encoder.create(config.encoder, tokenizer)).eval()
        self.inputs = RandomKB(sizes).inputs(torch.zeros(1, dtype=torch.int64))

    @torch.inference_mode()
    def verify(self) -> None:
        """The mention side is that of fp64."""
        side, exact = (model.mention_side(self.inputs) for model in (self.model, copy.deepcopy(self.model).double()))
        for tensors, others in ((side.item, exact.item), (side.visual, exact.visual)):
            for name, tensor in tensors.items():
                assert (tensor - others[name]).norm() <= 1e-4 * others[name].norm(), name

    @torch.inference_mode()
    def run(self) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        self.model.mention_side(self.inputs)
        return time.perf_counter() - start

    def peak(self) -> int:
        return peak_memory(self.run)

    def flop(self) -> int:
        """Of the towers' matrix products."""
        return self.sizes.text_flop() + self.sizes.image_flop()

    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())
