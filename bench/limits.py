"""What a pair costs at least, counted; a benchmark reports the share of this limit that it reaches.

Per text pair after spec section 5: Q K^T of 40 x 40 x 96 (2 FLOP each), 1,600 exponentials, the Gram form 2 (40 x 40 +
40 x 96). Images: 50 x 50 x 96, 2,500 exponentials, once per distinct image. Coarse terms: one inner product of 512 +
96 + 2 x 96 (M3EL). MIMIC: text as M3EL, coarse 512 + 96, and ten inner products of 96 a pair of images.

A logit costs ``LOGIT_SLOTS`` = 11 vector instructions: exp2 by a polynomial of degree 5 (range reduction 2, polynomial
5, scale 1), maximum, row sum, scaled column sum. Vector instructions issue at the rate of fp32 FMA (the measured fp32
matmul rate / 2). Tile products run on AMX beside them (the larger of the two counts); elsewhere they take their turn on
the same ports (the sum), in fp32 or, with AVX512-BF16, at the measured bf16 matmul rate.

The roofline plot has a measure of its own: FLOP of products and sums alone (an exponential is none), over the bytes
that main memory has to give and take once. Both are those of the computation in its cheapest exact form, whatever a
peer does beyond: between two forms of it, vertical distance is the ratio of their rates.

It is a yardstick: a share above 1 means that a kernel runs closer to the processor's peak than ``torch.matmul`` does,
issues on more ports than those of FMA, or (bf16) uses a shorter polynomial.
"""

from __future__ import annotations

from dataclasses import dataclass

LOGIT_SLOTS = 11
COARSE = 512 + 3 * 96  # of the inner products in M3EL's score: text, image, T2V, V2T
_LANES = {"avx2": 1 / 2}  # of the fp32 rate, where that was measured on AVX-512


@dataclass(frozen=True)
class Work:
    """What one mention-entity pair needs.

    Attributes:
        tile: FLOP of Q K^T; logits: of them exponentials; rest: FLOP of everything else.
    """

    tile: float
    logits: float
    rest: float

    @property
    def flop(self) -> float:
        """Of products and sums."""
        return self.tile + self.rest

    def __add__(self, other: Work) -> Work:
        return Work(self.tile + other.tile, self.logits + other.logits, self.rest + other.rest)

    def times(self, share: float) -> Work:
        return Work(self.tile * share, self.logits * share, self.rest * share)


def g2l_work(rows: int, columns: int, d: int) -> Work:
    """Work of one global-to-local score of ``rows`` entity tokens and ``columns`` mention tokens."""
    logits = rows * columns
    return Work(2.0 * logits * d, logits, 2.0 * (columns * columns + columns * d))


def g2l_bytes(length: int, d: int, mentions: int, entities: int) -> float:
    """Bytes a pair in ``g2l_scores`` of ``mentions`` x ``entities``: operands and scores once, in fp32."""
    return 4.0 * ((length + 1) * d / mentions + 2 * length * d / entities + 1)


def pair_work(kind: str, image_share: float) -> Work:
    """Work of one union score (``m3el`` or ``mimic``) with ``image_share`` distinct images per entity."""
    text = g2l_work(40, 40, 96)
    if kind == "mimic":
        return text + Work(0, 0, 2.0 * (512 + 96) + image_share * 10 * 2 * 96)
    return text + Work(0, 0, 2.0 * (512 + 2 * 96)) + (g2l_work(50, 50, 96) + Work(0, 0, 2.0 * 96)).times(image_share)


def entity_bytes(kind: str, image_share: float) -> float:
    """Bytes of one entity's features in an index with ``image_share`` distinct images per entity: queries and gates of
    tokens in bf16, all else in fp32."""
    text = 2 * (40 * 96 + 96) + 4 * (512 + 96)
    if kind == "mimic":
        return text + image_share * 4 * 2 * (3 * 96 + 7)
    return text + 4 * 96 + image_share * (2 * (50 * 96 + 96) + 4 * 96)


def coarse_bytes(image_share: float) -> float:
    """Those of them that M3EL's coarse score reads."""
    return 4.0 * (512 + 2 * 96 + image_share * 96)


def seconds_per_pair(work: Work, level: str, fp32_rate: float, bf16_rate: float, wide: bool) -> float:
    """Least seconds a pair at an instruction set, from this machine's matmul rates (FLOP a second, all threads).

    Args:
        wide: the fp32 rate was measured with AVX-512.
    """
    fp32 = fp32_rate * (_LANES.get(level, 1.0) if wide else 1.0)
    vector = (work.logits * LOGIT_SLOTS * 2 + work.rest) / fp32
    if level == "amx":
        return max(work.tile / bf16_rate, vector)
    return work.tile / (bf16_rate if level == "avx512bf16" else fp32) + vector
