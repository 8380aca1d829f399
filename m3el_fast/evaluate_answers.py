"""Answers to the mentions of a split: the best entities, ranks and scores of the golds, what calibration needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from m3el_fast.calibration_fit import Evidence
from m3el_fast.config import DataConfig
from m3el_fast.data.layout import read_mentions
from m3el_fast.dataset import Split, SplitName, mention_source, open_images
from m3el_fast.encoder import Encoder
from m3el_fast.features import Vectors
from m3el_fast.scorer import Scorer, TopK

NO_ANSWER = -1  # in the place of a gold's row


@dataclass(frozen=True)
class Answers:
    """What scoring says of M mentions.

    Attributes:
        gold: [M] int64 rows, -1 = none.
        ranks: [M] fp64 of the golds by component; empty where they were not asked for, or there is no gold.
        top: the k best entities [M, k].
        own: [M] fp32 scores of the golds by component, NaN where there is none.
    """

    gold: Tensor
    ranks: Vectors
    top: TopK
    own: Vectors

    def evidence(self) -> Evidence:
        """For calibration; at the temperatures that were asked for."""
        assert self.top.log_partition is not None
        best = self.top.scores["union"][:, 0].double()
        return Evidence(self.own["union"].double(), best, self.top.rows[:, 0] == self.gold, self.top.log_partition)


def unanswered(
    config: DataConfig, folder: Path, encoder: Encoder, name: SplitName, row: Mapping[str, int]
) -> Split | None:
    """The mentions of a split that have no answer in the KB: ``nil``, or an entity that it lacks; None = every one has.

    Args:
        row: of each entity, by its id.
    """
    left = [m for m in read_mentions(folder, name) if m.answer is None or m.answer not in row]
    if not left:
        return None
    paths = [mention.image for mention in left if mention.image is not None]
    cache = open_images(paths, encoder, config.strict_images, progress=True)
    return Split(left, mention_source(left, encoder, cache), torch.full((len(left),), NO_ANSWER))


def answer(
    scorer: Scorer,
    splits: Sequence[Split],
    k: int,
    temperatures: Sequence[float] = (),
    *,
    ranked: bool = False,
    share: slice = slice(None),
    progress: bool = True,
) -> list[Answers]:
    """Answers to each of several splits, each in one scan of the KB for every block of mentions.

    Args:
        scorer: over an index whose rows are the golds of ``splits``.
        k: best entities; all where there are fewer.
        temperatures: as of :meth:`Scorer.topk`.
        ranked: rank golds, too.
        share: which of each split's mentions.
    """
    chosen = [torch.arange(len(split.gold))[share] for split in splits]
    answers = []
    total = sum(map(len, chosen))
    with tqdm(total=total, desc="answering", unit="mention", disable=not progress, leave=False) as bar:
        for split, rows in zip(splits, chosen, strict=True):
            parts = []
            for block in rows.split(scorer.batch) if len(rows) else ():
                parts.append(_answer(scorer, split, block, min(k, len(scorer.index)), temperatures, ranked))
                bar.update(len(block))
            if parts:
                answers.append(join(parts))
    return answers


@torch.inference_mode()
def _answer(scorer: Scorer, split: Split, rows: Tensor, k: int, temperatures: Sequence[float], ranked: bool) -> Answers:
    model = scorer.model.eval()
    side = model.mention_side(split.source.inputs(rows).to(model.device))
    gold = split.gold[rows]
    there = bool((gold >= 0).all())
    ranks: Vectors = {}
    if ranked and there:
        ranks, top = scorer.ranks_and_topk(side, gold, k, temperatures)
    else:
        top = scorer.topk(side, k, temperatures=temperatures)
    if there:
        own = {name: score[:, 0] for name, score in scorer.components(side, list(gold[:, None])).items()}
    else:
        own = {name: torch.full((len(rows),), torch.nan) for name in top.scores}
    return Answers(gold, ranks, top, own)


def join(parts: Sequence[Answers]) -> Answers:
    """One after another."""
    ranks, own = _joined([part.ranks for part in parts]), _joined([part.own for part in parts])
    top = TopK.joined([part.top for part in parts])
    return Answers(torch.cat([part.gold for part in parts]), ranks, top, own)


def _joined(parts: Sequence[Vectors]) -> Vectors:
    """Of those that have any."""
    full = [part for part in parts if part]
    return {name: torch.cat([part[name] for part in full]) for name in full[0]} if full else {}
