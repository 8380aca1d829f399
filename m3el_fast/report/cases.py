"""The worst misses, each with its mention, its answer and the best entities (as in MIMIC's case study)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape

from tqdm import tqdm

from m3el_fast.report.contents import COMPONENTS, Choice, Miss
from m3el_fast.report.pictures import picture
from m3el_fast.report.plots import component_bars

_TEXT = 400  # characters shown of a sentence or a description


def cases(misses: Sequence[Miss]) -> str:
    """All of them; shows progress where pictures are many or large."""
    with tqdm(misses, desc="pictures", unit="miss", leave=False, delay=2) as bar:
        return "".join(_case(number, miss, len(misses)) for number, miss in enumerate(bar, 1))


def _case(number: int, miss: Miss, total: int) -> str:
    mention = miss.mention
    shown = [miss.gold, *miss.best]
    values = [one.scores[name] for one in shown for name in COMPONENTS if name in one.scores]
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    best = "".join(f"<li>{_choice(choice, str(place), low, high)}</li>" for place, choice in enumerate(miss.best, 1))
    name, rank = escape(mention.name) or "(empty)", f"{miss.rank:,.1f}".removesuffix(".0")
    images = () if mention.image is None else (mention.image,)
    return (
        f'<article class="case" aria-labelledby="case-{number}"><header>'
        f'<h3 id="case-{number}"><span class="soft">{number} of {total}</span> <bdi>{name}</bdi></h3>'
        f'<p class="rank">answer at rank <b>{rank}</b>{", linked to nothing" if miss.dropped else ""}</p></header>'
        f'<div class="asked">{_picture(picture(images, "mention"), "Picture of the mention")}'
        f'<p dir="auto">{marked(mention.sentence, mention.name)}</p></div>'
        f"<h4>Answer</h4>{_choice(miss.gold, '', low, high)}<h4>Best entities</h4>"
        f'<ol class="best">{best}</ol></article>'
    )


def _choice(choice: Choice, place: str, low: float, high: float) -> str:
    entity = choice.entity
    image = None if entity is None else picture(entity.images, "entity")
    said = "" if entity is None else entity.attr or entity.desc or ""
    probability = ""
    if choice.probability is not None:
        probability = f' <span class="soft">· probability {_probability(choice)}</span>'
    mark = '<span class="right">answer</span>' if choice.right and place else ""
    rank = f'<span class="soft">{place}.</span> ' if place else ""
    return (
        f'<div class="choice{" gold" if choice.right else ""}">'
        f'{_picture(image, f"Picture of {choice.name}")}<div class="who">'
        f'<p class="name">{rank}<bdi>{escape(choice.name)}</bdi> {mark}</p>'
        f'<p class="soft"><code>{escape(choice.id)}</code> <bdi>{escape(_cut(said))}</bdi></p>'
        f'<p class="score">score {choice.scores["union"]:.2f}{probability}</p></div>'
        f"{component_bars(choice.scores, low, high)}</div>"
    )


def _probability(choice: Choice) -> str:
    assert choice.probability is not None
    return f"{choice.probability:.3f}" if choice.probability >= 0.0005 else "under 0.001"


def _picture(data: str | None, said: str) -> str:
    if data is None:
        return '<div class="picture none">no picture</div>'
    return f'<div class="picture"><img src="{data}" alt="{escape(said)}"></div>'


def marked(sentence: str, name: str) -> str:
    """With its first occurrence of the mention marked, of whole words where there is one, and cut around it where it is
    long."""
    words = r"\s+".join(map(re.escape, name.split()))
    found = re.search(rf"(?<!\w){words}(?!\w)", sentence, re.IGNORECASE) or re.search(words, sentence, re.IGNORECASE)
    if not found or not words:
        return escape(_cut(sentence))
    first = max(0, found.start() - _TEXT // 2)
    before, after = sentence[first : found.start()], sentence[found.end() :]
    dots = "…" if first else ""
    return f"{dots}{escape(before)}<mark>{escape(found[0])}</mark>{escape(_cut(after))}"


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"
