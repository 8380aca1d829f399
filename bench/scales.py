"""How much work a benchmark does: plain data, apart from the code that does it."""

from __future__ import annotations

from dataclasses import dataclass

WIKIMEL_ENTITIES, WIKIMEL_MENTIONS = 109_976, 5_169
DT, DV, LT, LV = 512, 96, 40, 50  # the papers' dimensions and numbers of tokens


@dataclass(frozen=True)
class Scale:
    """Sizes of one ``--scale``.

    Attributes:
        entities: of the KB that is ranked against; mentions: ranked against it, at the best instruction set.
        peer_mentions, peer_entities: the slice on which eager PyTorch is timed; it is quoted per pair.
        batch: of training.
        rerank_mentions, candidates: of reranking.
        selections: rows, columns and k of top-k.
        loss_batch: of the contrastive loss alone; contexts: of the cross-modal unit alone.
        large: entities of the KB that is larger than memory, 0 = none.
        bandwidth_bytes: of the file whose reading is timed.
        smallest_kb: entities of the first point of the scaling curves.
        calls: with one mention each, whose percentiles are reported.
        build_entities: of the index whose building is timed.
        images: photographs that are decoded and cached; image_size: in pixels, that they are decoded to.
        houses: names of houses in the generated data set that is evaluated, nine houses each.
        rounds: timed rounds of calls that take seconds; short_rounds: of those that take milliseconds.
    """

    entities: int
    mentions: int
    peer_mentions: int
    peer_entities: int
    batch: int
    rerank_mentions: int
    candidates: int
    selections: tuple[tuple[int, int, int], ...]
    loss_batch: int
    contexts: int
    large: int
    bandwidth_bytes: int
    smallest_kb: int
    calls: int
    build_entities: int
    images: int
    image_size: int
    houses: int
    rounds: int
    short_rounds: int


_DEFAULT = Scale(
    entities=WIKIMEL_ENTITIES,
    mentions=64,
    peer_mentions=64,
    peer_entities=1_000,
    batch=128,
    rerank_mentions=64,
    candidates=1_000,
    selections=((64, WIKIMEL_ENTITIES, 10), (512, 131_072, 100), (1, 10_000_000, 100)),
    loss_batch=1_024,
    contexts=8_192,
    large=0,
    bandwidth_bytes=2 << 30,
    smallest_kb=2_000,
    calls=100,
    build_entities=4_096,
    images=512,
    image_size=224,
    houses=167,
    rounds=3,
    short_rounds=10,
)


def _with(**changes: int) -> Scale:
    return Scale(**(vars(_DEFAULT) | changes))


SCALES = {
    "tiny": Scale(
        entities=600,
        mentions=12,
        peer_mentions=4,
        peer_entities=50,
        batch=6,
        rerank_mentions=4,
        candidates=40,
        selections=((64, 600, 10), (3, 700, 100), (1, 5_000, 100)),
        loss_batch=24,
        contexts=70,
        large=700,
        bandwidth_bytes=1 << 24,
        smallest_kb=100,
        calls=3,
        build_entities=300,
        images=16,
        image_size=32,
        houses=4,
        rounds=1,
        short_rounds=1,
    ),
    "default": _DEFAULT,
    "paper": _with(mentions=WIKIMEL_MENTIONS),
    "million": _with(large=1_000_000),
}

# Mentions that a slower instruction set is given, so that a round takes a few seconds. At 16 AVX2 and AVX-512 have the
# rates that they have at 64, within 1.5%; bf16 products, whose rows are repacked, gain 7% from 16 to 64.
MENTIONS_AT = {"scalar": 1, "reference": 8, "avx2": 16, "avx512": 16}
LONG = 1_000  # mentions: ranking more takes minutes, and is timed once


def mentions_at(scale: Scale, level: str, best: str) -> int:
    """Mentions to rank at an instruction set, ``best`` being the machine's."""
    return scale.mentions if level == best else min(scale.mentions, MENTIONS_AT.get(level, 64))
