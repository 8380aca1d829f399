"""Mentions made from the KB itself, for training: every entity is seen as an answer, and every word of its text."""

from __future__ import annotations

import random
import re

from m3el_fast.data.layout import Entity, EntityText, KnowledgeBase, Mention

_QUALIFIER = re.compile(r"\s*\([^()]*\)\s*$")
_FACTS = re.compile(r"(?<=[.;])\s+")


def kb_mentions(kb: KnowledgeBase, context: EntityText, per_entity: int, seed: int) -> list[Mention]:
    """``per_entity`` mentions of each entity: a form of its name in a few facts of its own description, shuffled.

    The name is the full one without its qualifier ("Fred (footballer)" -> "Fred"), its last word or its first; the
    image is one of the entity's. Deterministic in ``seed``.
    """
    draw = random.Random(seed)
    return [_mention(entity, context, draw, n) for entity in kb.entities for n in range(per_entity)]


def _mention(entity: Entity, context: EntityText, draw: random.Random, number: int) -> Mention:
    name = _QUALIFIER.sub("", entity.name) or entity.name
    words = name.split()
    form = draw.choice([name, words[-1], words[-1], words[0]])
    facts = _FACTS.split((entity.attr if context == "attr" else entity.desc) or "")
    some = draw.sample(facts, draw.randint(1, max(1, len(facts) // 2)))
    image = draw.choice(entity.images) if entity.images else None
    return Mention(f"{entity.qid}-{number}", form, f"{form}. {' '.join(some)}", image, entity.qid)
