from __future__ import annotations

from pathlib import Path

from m3el_fast.data.augment import kb_mentions
from m3el_fast.data.layout import Entity, KnowledgeBase

KB = KnowledgeBase(
    Path("kb"),
    [
        Entity(
            "Q1",
            "Fred Ann Smith (footballer, born 1979)",
            "Sex: male. Club: Leeds. Born: Hull.",
            None,
            (Path("a.jpg"),),
        ),
        Entity("Q2", "(unnamed)", "", "Found: 1900. Lost: 1901", ()),
    ],
)


def test_mentions_are_forms_of_the_name_in_facts_of_the_entity() -> None:
    mentions = kb_mentions(KB, "attr", 50, seed=1)
    assert [m.answer for m in mentions] == ["Q1"] * 50 + ["Q2"] * 50
    assert {m.name for m in mentions} == {"Fred Ann Smith", "Fred", "Smith", "(unnamed)"}
    facts = {"Sex: male.", "Club: Leeds.", "Born: Hull."}
    assert {m.sentence.removeprefix(f"{m.name}. ") for m in mentions[:50]} == facts
    assert {m.image for m in mentions} == {Path("a.jpg"), None}
    assert len({m.id for m in mentions}) == 100


def test_the_long_description_is_used_where_it_is_asked_for() -> None:
    sentences = {m.sentence for m in kb_mentions(KB, "desc", 30, seed=1)[30:]}
    assert sentences == {"(unnamed). Found: 1900.", "(unnamed). Lost: 1901"}


def test_they_depend_on_the_seed_alone() -> None:
    assert kb_mentions(KB, "attr", 9, seed=3) == kb_mentions(KB, "attr", 9, seed=3)
    assert kb_mentions(KB, "attr", 9, seed=3) != kb_mentions(KB, "attr", 9, seed=4)
