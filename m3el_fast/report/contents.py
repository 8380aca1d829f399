"""What a report shows, and the groups of mentions and the misses in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from m3el_fast.calibration import Calibration
from m3el_fast.calibration_metrics import CalibrationMetrics
from m3el_fast.config import DataConfig
from m3el_fast.data.layout import Entity, Mention, read_kb
from m3el_fast.dataset import Split
from m3el_fast.evaluate_answers import Answers
from m3el_fast.index import EntityIndex
from m3el_fast.metrics import Metrics

SHOWN = 5  # entities of a miss
MISSES = 50

COMPONENTS = {"text": "text", "image": "image", "t2v": "text → image", "v2t": "image → text"}
"""Scores that a union score is made of, and what they compare."""

_RANKS = (1, 2, 3, 5, 10, 20, 50, 100, 1000)  # upper ends
_BEARERS = (0, 1, 5, 20, 100)  # upper ends


@dataclass(frozen=True)
class Report:
    """An evaluation of the mentions of a split that have an answer.

    Attributes:
        checkpoint: its name; data: that of the data set.
        answers: with ranks and :data:`SHOWN` best entities (fewer, where there are fewer).
        metrics: of ``answers.ranks``, by the names that the command prints.
        calibration, trust: of the checkpoint, and what they were measured to be worth; None = not calibrated.
        entities: by id, as the data set describes them; those of the index may be others.
    """

    checkpoint: str
    data: str
    split_name: str
    split: Split
    answers: Answers
    index: EntityIndex
    metrics: Mapping[str, Metrics]
    calibration: Calibration | None
    trust: CalibrationMetrics | None
    entities: Mapping[str, Entity]


@dataclass(frozen=True)
class Group:
    """Mentions that have something in common, and how their answers are ranked; None = there are no such mentions."""

    label: str
    metrics: Metrics | None


@dataclass(frozen=True)
class Choice:
    """An entity as an answer to a mention.

    Attributes:
        entity: as the data set describes it, None = it does not.
        scores: by component, with ``union``; those that the model's form has.
        probability: None = not calibrated.
        right: it is the answer.
    """

    id: str
    name: str
    entity: Entity | None
    scores: Mapping[str, float]
    probability: float | None
    right: bool


@dataclass(frozen=True)
class Miss:
    """A mention whose answer is not the best entity: its rank, the answer, and the best entities.

    Attributes:
        dropped: the best entity is less probable than the NIL threshold: the mention is linked to nothing.
    """

    mention: Mention
    rank: float
    gold: Choice
    best: Sequence[Choice]
    dropped: bool


def entities_in(folder: Path, config: DataConfig) -> dict[str, Entity]:
    """The entities of a data set by id; none where it has no ``kb_entity.json``. Raises InputError as ``read_kb``."""
    if not (folder / "kb_entity.json").exists():
        return {}
    return {entity.qid: entity for entity in read_kb(folder, config.entity_text).entities}


def rank_histogram(ranks: Tensor) -> list[tuple[str, int]]:
    """How many of the ranks [M] are in each of some ranges; one between two places (a tie) counts as the worse."""
    ends = torch.tensor(_RANKS, dtype=torch.float64)
    counts = torch.bucketize(ranks.double(), ends).bincount(minlength=len(_RANKS) + 1).tolist()
    return list(zip(_ranges(_RANKS, 1), counts, strict=True))


def by_ambiguity(report: Report) -> list[Group]:
    """Mentions grouped by the number of entities that bear their name (:func:`bearers`)."""
    index = report.index
    names = index.names.gather(index.live.nonzero()[:, 0])
    counts = torch.tensor(bearers([mention.name for mention in report.split.mentions], names))
    place = torch.bucketize(counts, torch.tensor(_BEARERS))
    ranks = report.answers.ranks["union"]
    return [_group(label, ranks, place == number) for number, label in enumerate(_ranges(_BEARERS, 0))]


def by_image(report: Report) -> list[Group]:
    """Mentions grouped by whether they and their answers have an image that could be read."""
    index, ranks = report.index, report.answers.ranks["union"]
    none = index.find_images(torch.zeros(1, 2, dtype=torch.int64))[0]  # the digest of no image
    mention = report.split.source.image_key >= 0
    entity = index.image_index[report.answers.gold] != none
    return [
        _group("mention and entity", ranks, mention & entity),
        _group("mention alone", ranks, mention & ~entity),
        _group("entity alone", ranks, ~mention & entity),
        _group("neither", ranks, ~mention & ~entity),
    ]


def bearers(mentions: Sequence[str], entities: Iterable[str]) -> list[int]:
    """For each mention how many entities have its words, one after another, in their name. Neither case nor what stands
    in brackets in an entity's name matters: "ryan" is borne by "Paul Ryan" and "Ryan (given name)"."""
    asked = [_words(name) for name in mentions]
    having: dict[str, list[str]] = {word: [] for mention in asked for word in mention.split()}
    for name in entities:
        plain = _words(re.sub(r"\([^)]*\)", " ", name))
        for word in having.keys() & plain.split():
            having[word].append(plain)
    known: dict[str, int] = {}
    for mention in set(asked):
        rarest = min((having[word] for word in mention.split()), key=len, default=[])
        known[mention] = sum(mention in name for name in rarest)
    return [known[mention] for mention in asked]


def misses(report: Report) -> list[Miss]:
    """The :data:`MISSES` worst ones."""
    answers = report.answers
    behind = answers.top.scores["union"][:, 0] - answers.own["union"]
    return [_miss(report, number) for number in worst(answers.ranks["union"], behind)[:MISSES]]


def worst(ranks: Tensor, behind: Tensor) -> list[int]:
    """The mentions whose ranks [M] are above 1, the highest first; of equal ones those first whose answer's score is
    further ``behind`` [M] the best."""
    order = behind.argsort(descending=True, stable=True)
    order = order[ranks[order].argsort(descending=True, stable=True)]
    return order[ranks[order] > 1].tolist()


def _miss(report: Report, number: int) -> Miss:
    answers, gold = report.answers, int(report.answers.gold[number])
    own = {name: float(score[number]) for name, score in answers.own.items()}
    best = []
    for place, row in enumerate(answers.top.rows[number].tolist()):
        scores = {name: float(score[number, place]) for name, score in answers.top.scores.items()}
        best.append(_choice(report, number, row, scores, row == gold))
    mention, rank = report.split.mentions[number], float(answers.ranks["union"][number])
    nil, probability = None if report.trust is None else report.trust.nil, best[0].probability
    dropped = nil is not None and probability is not None and probability < nil.threshold
    return Miss(mention, rank, _choice(report, number, gold, own, True), best, dropped)


def _choice(report: Report, number: int, row: int, scores: Mapping[str, float], right: bool) -> Choice:
    probability, logs = None, report.answers.top.log_partition
    if report.calibration is not None and logs is not None:
        union = torch.tensor([scores["union"]], dtype=torch.float64)
        probability = float(report.calibration.probability(union, logs[number]))
    own = report.index.ids[row]
    return Choice(own, report.index.names[row], report.entities.get(own), scores, probability, right)


def _group(label: str, ranks: Tensor, chosen: Tensor) -> Group:
    return Group(label, Metrics.of(ranks[chosen]) if chosen.any() else None)


def _ranges(ends: Sequence[int], first: int) -> list[str]:
    """Names of the ranges of whole numbers from ``first`` on that end at ``ends``, and of the rest."""
    labels = []
    for end in ends:
        labels.append(f"{end:,}" if end == first else f"{first:,} to {end:,}")
        first = end + 1
    return [*labels, f"above {ends[-1]:,}"]


def _words(name: str) -> str:
    """The words, with a blank before and after each, so that whole words are found."""
    return "".join(f" {word}" for word in re.findall(r"\w+", unicodedata.normalize("NFKC", name).casefold())) + " "
