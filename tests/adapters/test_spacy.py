"""The spaCy component: what it asks the linker, what it writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from m3el_fast.errors import InputError
from m3el_fast.link import Linker

spacy = pytest.importorskip("spacy", reason="spaCy is not installed: pip install -e '.[spacy]'")

from spacy.tokens import Doc, Span  # noqa: E402
from spacy.tokens.underscore import Underscore  # noqa: E402
from spacy.training import Example  # noqa: E402

from adapters.spacy_cases import TEXT, Folders, kb_ids, linked, pipeline, write_folders  # noqa: E402
from m3el_fast.adapters import extras  # noqa: E402
from m3el_fast.calibration import Calibration  # noqa: E402

SENTENCES = ["We saw the Elm inn by day.", "At night the Elm mill burnt, and the Ash tree with it."]
MENTIONS = [("Elm inn", SENTENCES[0]), ("Elm mill", SENTENCES[1]), ("Ash tree", SENTENCES[1])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("spacy"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The mentions of every call of ``Linker.link``, which still links them."""
    calls: list[list[dict[str, Any]]] = []
    real = Linker.link

    def link(self: Linker, mentions: Any, k: int = 10, candidates: Any = None) -> list[list[dict[str, Any]]]:
        calls.append(list(mentions))
        return real(self, mentions, k, candidates)

    monkeypatch.setattr(Linker, "link", link)
    return calls


def picture(folders: Folders, colour: str) -> str:
    return str(folders.data / "mention_image" / f"{colour}.jpg")


# -- what is written --------------------------------------------------------------------------------------------------


def test_links_are_the_linkers(folders: Folders) -> None:
    records = [{"mention": name, "sentence": sentence} for name, sentence in MENTIONS]
    expected = folders.linker().link(records, k=3)
    assert len({links[0]["score"] for links in expected}) == 3
    doc = pipeline(folders.config)(TEXT)
    for ent, (name, _), links in zip(doc.ents, MENTIONS, expected, strict=True):
        assert (ent.text, ent.kb_id_) == (name, links[0]["id"])
        assert ent._.kb_score == links[0]["score"]
        assert ent._.kb_candidates == links
        assert len(links) == 3
        assert {token.ent_kb_id_ for token in ent} == {links[0]["id"]}


def test_all_else_of_the_entities_stays(folders: Folders) -> None:
    Span.set_extension("remark", default=None, force=True)
    nlp = pipeline(folders.config)
    with nlp.select_pipes(disable="m3el_linker"):
        doc = nlp(TEXT)
    doc.ents[1]._.remark = "mine"
    doc.spans["mine"] = [doc[0:2]]
    before = doc.to_json() | {"ents": [(ent.start, ent.end, ent.label_, ent.id_, ent.ent_id_) for ent in doc.ents]}
    iob = [token.ent_iob_ for token in doc]
    nlp.get_pipe("m3el_linker")(doc)
    after = doc.to_json() | {"ents": [(ent.start, ent.end, ent.label_, ent.id_, ent.ent_id_) for ent in doc.ents]}
    assert before["ents"] == after["ents"]
    assert before["ents"][1][2:] == ("HOUSE", "id-Elm mill", "id-Elm mill")
    assert [token.ent_iob_ for token in doc] == iob
    assert (doc.ents[1]._.remark, doc.ents[0]._.remark) == ("mine", None)
    assert before["spans"] == after["spans"]
    assert "" not in kb_ids(doc)
    again = Doc(doc.vocab).from_bytes(doc.to_bytes())
    assert linked(again) == linked(doc)


def test_the_threshold(folders: Folders) -> None:
    scores = [score for _, _, score, _ in linked(pipeline(folders.config)(TEXT))]
    best = max(scores)
    doc = pipeline(folders.config | {"threshold": best})(TEXT)
    assert [ent.kb_id_ == "NIL" for ent in doc.ents] == [score < best for score in scores]
    assert sum(score == best for score in scores) == 1
    assert [ent._.kb_score for ent in doc.ents] == scores  # also of those below it
    assert [len(ent._.kb_candidates) for ent in doc.ents] == [3] * 3


def test_without_a_threshold_the_calibrations_counts(folders: Folders) -> None:
    nlp = pipeline(folders.config)
    model = nlp.get_pipe("m3el_linker").linker.model
    fitted = {"temperature": 1.0, "nil_score": None, "data": "TINY", "entities": 12, "mentions": 24, "nil": 0}
    model.calibration = Calibration(nil_threshold=0, **fitted)
    best = [ent._.kb_candidates[0] for ent in nlp(TEXT).ents]
    middle = sorted(one["probability"] for one in best)[1]
    model.calibration = Calibration(nil_threshold=middle, **fitted)
    found = [one["id"] if one["probability"] >= middle else "NIL" for one in best]
    assert kb_ids(nlp(TEXT)) == found and found.count("NIL") == 1
    scored = pipeline(folders.config | {"threshold": -1e9})
    scored.get_pipe("m3el_linker").linker.model.calibration = model.calibration
    assert kb_ids(scored(TEXT)) == [one["id"] for one in best]


def test_labels_and_overwrite(folders: Folders, asked: list[list[dict[str, Any]]]) -> None:
    doc = pipeline(folders.config | {"labels": ["TREE"]})(TEXT)
    assert [name for (name, *_), kb_id in zip(linked(doc), kb_ids(doc), strict=True) if kb_id] == ["Ash tree"]
    assert linked(doc)[0] == ("Elm inn", "", None, None)
    first = kb_ids(doc)[2]
    for overwrite, number in ((False, 2), (True, 3)):
        asked.clear()
        nlp = pipeline(folders.config | {"overwrite": overwrite})
        other = nlp.get_pipe("m3el_linker")(Doc(nlp.vocab).from_bytes(doc.to_bytes()))
        assert len(asked[0]) == number
        assert kb_ids(other)[2] == first
        assert "" not in kb_ids(other)


def test_candidates_are_asked_for(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    real = Linker.link

    def link(self: Linker, mentions: Any, k: int = 10, candidates: Any = None) -> list[list[dict[str, Any]]]:
        given.append((k, candidates))
        return real(self, mentions, k, candidates)

    monkeypatch.setattr(Linker, "link", link)
    exact, coarse = pipeline(folders.config)(TEXT), pipeline(folders.config | {"candidates": 12})(TEXT)
    assert given == [(3, None), (3, 12)]
    for one, other in zip(exact.ents, coarse.ents, strict=True):  # all entities are candidates; Q9 is Q8's twin
        assert one._.kb_score == pytest.approx(other._.kb_score, rel=1e-4, abs=1e-4)


def test_evaluation(folders: Folders) -> None:
    nlp = pipeline(folders.config)
    right = nlp(TEXT)
    spans = [
        {"start": ent.start_char, "end": ent.end_char, "label": ent.label_, "kb_id": ent.kb_id_} for ent in right.ents
    ]
    entities = [(one["start"], one["end"], one["label"]) for one in spans]
    links = {(one["start"], one["end"]): {one["kb_id"]: 1.0} for one in spans}
    links[spans[0]["start"], spans[0]["end"]] = {"Q999": 1.0}
    example = Example.from_dict(nlp.make_doc(TEXT), {"entities": entities, "links": links})
    scores = nlp.evaluate([example])
    assert scores["nel_micro_f"] == pytest.approx(2 / 3)
    assert scores["nel_micro_p"] == pytest.approx(2 / 3)
    # a mention rightly left without an entity is no link
    links = {span: {"NIL": 1.0} for span in links}
    example = Example.from_dict(nlp.make_doc(TEXT), {"entities": entities, "links": links})
    assert pipeline(folders.config | {"threshold": 1e9}).evaluate([example])["nel_micro_f"] == 0
    assert nlp.evaluate([example])["nel_micro_p"] == 0


# -- what the model is given ------------------------------------------------------------------------------------------


def test_sentences(folders: Folders, asked: list[list[dict[str, Any]]]) -> None:
    pipeline(folders.config)(TEXT)
    pipeline(folders.config, sentences=False)(TEXT)
    assert [[one["sentence"] for one in call] for call in asked] == [[s for _, s in MENTIONS], [TEXT] * 3]
    assert [[one["mention"] for one in call] for call in asked] == [[name for name, _ in MENTIONS]] * 2


def test_an_entity_in_two_sentences(folders: Folders, asked: list[list[dict[str, Any]]]) -> None:
    nlp = pipeline(folders.config, sentences=False)
    words = ["Stop", "!", "The", "Elm", "mill", "burnt", ".", "Yes", "."]
    nlp(Doc(nlp.vocab, words, sent_starts=[i in (0, 2, 4, 7) for i in range(len(words))]))
    assert [one["sentence"] for one in asked[0]] == ["The Elm mill burnt ."]


def test_images(folders: Folders, asked: list[list[dict[str, Any]]]) -> None:
    nlp = pipeline(folders.config)
    red, blue = picture(folders, "red"), Path(picture(folders, "blue"))
    with nlp.select_pipes(disable="m3el_linker"):
        doc = nlp(TEXT)
    doc._.image = red
    doc.ents[1]._.image = blue
    doc.ents[2]._.image = ""
    nlp.get_pipe("m3el_linker")(doc)
    assert [one["image"] for one in asked[0]] == [red, blue, ""]
    with_image, without = linked(doc), linked(nlp(TEXT))
    assert [one["image"] for one in asked[1]] == [None] * 3
    assert with_image[0][2] != pytest.approx(without[0][2])
    assert with_image[1][2] != pytest.approx(without[1][2])
    assert with_image[2][2] == pytest.approx(without[2][2], rel=1e-4, abs=1e-4)


def test_an_image_that_is_not_there(folders: Folders) -> None:
    nlp = pipeline(folders.config)
    doc = nlp.make_doc(TEXT)
    doc._.image = "nowhere.jpg"
    with pytest.warns(UserWarning, match=r"^1 of 1 images missing, first: nowhere\.jpg"):
        nlp(doc)
    assert linked(doc) == linked(nlp(TEXT))


@pytest.mark.parametrize("holder", ["doc", "span"])
def test_an_image_that_is_no_path(holder: str, folders: Folders) -> None:
    nlp = pipeline(folders.config)
    doc = nlp.make_doc(TEXT)
    (doc if holder == "doc" else doc.char_span(11, 18))._.image = 3
    where = r"doc\._\.image" if holder == "doc" else r"span\._\.image of 'Elm inn'"
    with pytest.raises(InputError, match=f"{where}: expected a path or None, got int"):
        nlp(doc)


# -- streams ----------------------------------------------------------------------------------------------------------

STREAM = [TEXT, "Nothing here.", "The Elm school. " * 2, "", "The Elm inn.", "The Elm mill.", "An Ash tree."]
COUNTS = [3, 0, 2, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("config", "docs", "calls"),
    [
        ({}, 100, [8]),
        ({}, 3, [5, 2, 1]),
        ({"batch_size": 4}, 100, [5, 3]),
        ({"batch_size": 1}, 100, [3, 2, 1, 1, 1]),
    ],
    ids=["all", "docs", "mentions", "one"],
)
def test_a_stream_is_linked_in_batches(
    config: dict[str, Any], docs: int, calls: list[int], folders: Folders, asked: list[list[dict[str, Any]]]
) -> None:
    nlp = pipeline(folders.config | config)
    found = list(nlp.pipe(STREAM, batch_size=docs))
    assert [len(call) for call in asked] == calls
    assert [doc.text for doc in found] == STREAM
    assert [len(doc.ents) for doc in found] == COUNTS
    for doc in found:
        alone = nlp(doc.text)
        assert kb_ids(doc) == kb_ids(alone)
        for one, other in zip(doc.ents, alone.ents, strict=True):  # fp32 sums of products of other shapes
            assert one._.kb_score == pytest.approx(other._.kb_score, rel=1e-4, abs=1e-4)


def test_docs_without_entities_open_nothing(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Linker, "from_pretrained", None)
    nlp = pipeline(folders.config | {"labels": ["TREE"]})
    assert list(nlp.pipe([])) == []
    assert [doc.text for doc in nlp.pipe(["Nothing here.", "", "The Elm inn."])] == [
        "Nothing here.",
        "",
        "The Elm inn.",
    ]
    assert nlp("").text == ""


def test_tuples(folders: Folders, asked: list[list[dict[str, Any]]]) -> None:
    nlp = pipeline(folders.config)
    inputs = []
    for text, colour in ((TEXT, "red"), ("The Elm inn.", "blue")):
        doc = nlp.make_doc(text)
        doc._.image = picture(folders, colour)
        inputs.append((doc, {"page": colour}))
    found = list(nlp.pipe(inputs, as_tuples=True))
    assert [context for _, context in found] == [{"page": "red"}, {"page": "blue"}]
    assert [one["image"] for one in asked[0]] == [picture(folders, "red")] * 3 + [picture(folders, "blue")]
    assert all("" not in kb_ids(doc) for doc, _ in found)


Handled = list[tuple[str, list[str], str]]


def handler(handled: Handled) -> Any:
    def handle(name: str, component: Any, docs: list[Doc], error: Exception) -> None:
        handled.append((name, [doc.text for doc in docs], str(error)))

    return handle


def test_a_bad_doc_goes_to_the_error_handler(folders: Folders) -> None:
    nlp, handled = pipeline(folders.config), Handled()
    nlp.set_error_handler(handler(handled))
    docs = [nlp.make_doc(text) for text in ("The Elm inn.", "The Elm mill.", "An Ash tree.")]
    docs[1]._.image = 3
    assert [doc.text for doc in nlp.pipe(docs)] == ["The Elm inn.", "An Ash tree."]
    assert handled == [("m3el_linker", ["The Elm mill."], "doc._.image: expected a path or None, got int")]


def test_a_failing_batch_goes_to_the_error_handler(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    nlp, handled = pipeline(folders.config), Handled()
    real = Linker.link

    def link(self: Linker, mentions: Any, k: int = 10, candidates: Any = None) -> list[list[dict[str, Any]]]:
        if any(one["mention"] == "Elm mill" for one in mentions):
            raise RuntimeError("no memory")
        return real(self, mentions, k, candidates)

    monkeypatch.setattr(Linker, "link", link)
    texts = ["The Elm inn.", "Nothing here.", "The Elm mill.", "An Ash tree.", "The Elm inn."]
    with pytest.raises(RuntimeError, match="no memory"):
        list(nlp.pipe(texts, batch_size=2))
    nlp.set_error_handler(handler(handled))
    assert [doc.text for doc in nlp.pipe(texts, batch_size=2)] == [texts[0], texts[1], texts[4]]
    assert handled == [("m3el_linker", texts[2:4], "no memory")]


def test_a_model_that_cannot_be_opened_is_no_fault_of_the_docs(folders: Folders) -> None:
    nlp, handled = pipeline(folders.config | {"checkpoint": str(folders.data)}), Handled()
    nlp.set_error_handler(handler(handled))
    with pytest.raises(InputError, match=r"expected a checkpoint folder with config\.yaml"):
        list(nlp.pipe([TEXT]))
    assert handled == []


# -- settings ---------------------------------------------------------------------------------------------------------

BAD = {
    "both": ({"index": "a", "kb": "b"}, "either index or kb, got both"),
    "k": ({"k": 0}, "m3el_linker, key k: expected a whole number of at least 1, got 0"),
    "k-type": ({"k": [1]}, "k"),
    "batch": ({"batch_size": -1}, "m3el_linker, key batch_size: expected a whole number of at least 1, got -1"),
    "candidates": ({"candidates": 9}, "m3el_linker, key candidates: expected a whole number of at least 10, got 9"),
    "threshold": ({"threshold": [1]}, "threshold"),
    "labels": ({"labels": "HOUSE"}, "labels"),
    "device": ({"device": ["cpu"]}, "device"),
    "overwrite": ({"overwrite": "maybe"}, "overwrite"),
    "unknown": ({"limit": 3}, "limit"),
}


@pytest.mark.parametrize(("config", "message"), BAD.values(), ids=BAD)
def test_a_bad_setting(config: dict[str, Any], message: str) -> None:
    nlp = spacy.blank("en")
    with pytest.raises(ValueError, match=message):
        nlp.add_pipe("m3el_linker", config=config)
    assert nlp.pipe_names == []


@pytest.mark.skipif(version("confection") < "1", reason="this version of confection makes numbers of such values")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"k": "3"}, "m3el_linker, key k: expected a whole number of at least 1, got '3'"),
        ({"threshold": "7"}, "m3el_linker, key threshold: expected a finite number, got '7'"),
        ({"k": 2.5}, "k\t.*2.5"),
    ],
)
def test_what_is_nearly_a_number(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spacy.blank("en").add_pipe("m3el_linker", config=config)


def test_settings_come_back(folders: Folders) -> None:
    settings = folders.config | {"threshold": -2, "labels": ["HOUSE"], "candidates": 5, "device": "cpu"}
    nlp = pipeline(settings)
    config = json.loads(json.dumps(nlp.config["components"]["m3el_linker"]))
    assert config == {"factory": "m3el_linker", "kb": None, "overwrite": True, "batch_size": 256, **settings}
    other = spacy.util.load_model_from_config(spacy.util.load_config_from_str(nlp.config.to_str()))
    assert other.get_pipe("m3el_linker").settings == nlp.get_pipe("m3el_linker").settings
    assert nlp.analyze_pipes()["problems"]["m3el_linker"] == []


def test_without_a_checkpoint() -> None:
    nlp = pipeline({})
    with pytest.raises(
        InputError, match="m3el_linker, key checkpoint: expected a checkpoint folder or Hub name, got n"
    ):
        nlp(TEXT)
    with pytest.raises(InputError, match="key checkpoint"):
        nlp.initialize()


def test_initialize_opens_the_model(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    nlp = pipeline(folders.config)
    nlp.initialize()
    monkeypatch.setattr(Linker, "from_pretrained", None)
    assert len(nlp.get_pipe("m3el_linker").linker.index) == 12


@pytest.fixture
def _extensions() -> Iterator[None]:
    """What the test does to the extensions is undone."""
    tokens, spans, docs = (dict(one) for one in Underscore.get_state())
    yield
    Underscore.load_state((tokens, spans, docs))


@pytest.mark.usefixtures("_extensions")
@pytest.mark.parametrize(
    ("name", "other", "got"),
    [
        ("kb_score", {"getter": len}, "a getter"),
        ("kb_candidates", {"method": len}, "a method"),
        ("kb_candidates", {"default": []}, r"the default \[\]"),
    ],
)
def test_an_extension_that_is_taken(name: str, other: dict[str, Any], got: str) -> None:
    Span.set_extension(name, force=True, **other)
    with pytest.raises(InputError, match=rf"extension Span\._\.{name}: expected none, or .*, got one with {got}"):
        spacy.blank("en").add_pipe("m3el_linker")
    assert Span.has_extension(name)


@pytest.mark.usefixtures("_extensions")
def test_an_image_that_is_computed(folders: Folders, asked: list[list[dict[str, Any]]]) -> None:
    Doc.set_extension("image", getter=lambda doc: picture(folders, "green"), force=True)
    pipeline(folders.config)("The Elm inn.")
    assert asked[0][0]["image"] == picture(folders, "green")


def test_without_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "m3el_fast.adapters.spacy")
    with pytest.raises(ModuleNotFoundError, match=r"^spacy is not installed: pip install -e '\.\[spacy\]'$"):
        import_module("m3el_fast.adapters.spacy")
