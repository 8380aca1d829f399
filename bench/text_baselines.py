"""Text baselines on a data set in the MIMIC layout: exact name match and BM25 over names + attr.

``python -m bench.text_baselines DIR [--split test]``; needs ``pip install bm25s``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import bm25s
import numpy as np
import torch

from m3el_fast.data.layout import entity_text, read_kb, read_mentions
from m3el_fast.errors import run_command
from m3el_fast.metrics import Metrics, table


def main() -> None:
    parser = argparse.ArgumentParser(description="Exact name match and BM25 against the whole KB.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test")
    args = parser.parse_args()
    kb = read_kb(args.data, "attr")
    mentions = [m for m in read_mentions(args.data, args.split) if m.answer in kb.row]
    gold = np.array([kb.row[m.answer] for m in mentions if m.answer is not None])

    names = np.array([entity.name.casefold() for entity in kb.entities])
    exact = ((names == mention.name.casefold()).astype(float) for mention in mentions)
    rows = {"exact name": ranks(exact, gold)}
    texts = [entity_text(entity, "attr").replace("[SEP]", " ") for entity in kb.entities]
    index = bm25s.BM25()
    index.index(words(texts), show_progress=False)
    rows["BM25, mention"] = bm25(index, [m.name for m in mentions], gold)
    rows["BM25, mention + sentence"] = bm25(index, [f"{m.name} {m.sentence}" for m in mentions], gold)
    print(f"{args.data}, {args.split}: {len(mentions)} mentions, {len(kb)} entities\n{table(rows)}")


def words(texts: list[str]) -> list[list[str]]:
    """Lower-case words, one-letter ones too (initials count in names)."""
    tokens: list[list[str]] = bm25s.tokenize(
        texts, token_pattern=r"(?u)\b\w+\b", stopwords=None, return_ids=False, show_progress=False
    )
    return tokens


def bm25(index: bm25s.BM25, queries: list[str], gold: np.ndarray) -> Metrics:
    return ranks(
        (index.get_scores(query) if query else np.zeros(index.scores["num_docs"]) for query in words(queries)), gold
    )


def ranks(scores: Iterable[np.ndarray], gold: np.ndarray) -> Metrics:
    """Metrics of each mention's scores [E] of all entities; ties count half (spec section 6)."""
    found = []
    for row, score in zip(gold, scores, strict=True):
        own = score[row]
        found.append(1 + (score > own).sum() + ((score == own).sum() - 1) / 2)
    return Metrics.of(torch.tensor(found))


if __name__ == "__main__":
    run_command(main)
