"""A split of mentions into train, dev and test that keeps the mentions of one sentence together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from m3el_fast.data.layout import Split

HELD_OUT: dict[Split, int] = {"dev": 10, "test": 20}  # percent of the mentions, as in the releases; the rest is train


def split_sentences(sentences: Sequence[str], seed: int) -> list[Split]:
    """The split of each mention, from its sentence.

    Sentences are ordered by a hash of ``seed`` and text (SHA-256), so that the same mentions are split the same way
    whatever their order, and fill first dev and then test until each has its share of the mentions, or a sentence more.
    Sentences that differ in white space alone are the same.
    """
    keys = [" ".join(sentence.split()) for sentence in sentences]
    counts = Counter(keys)
    filled: Counter[Split] = Counter()
    split_of: dict[str, Split] = {}
    for key in sorted(counts, key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest()):
        wanting = (split for split, share in HELD_OUT.items() if filled[split] * 100 < share * len(keys))
        split_of[key] = next(wanting, "train")
        filled[split_of[key]] += counts[key]
    return [split_of[key] for key in keys]
