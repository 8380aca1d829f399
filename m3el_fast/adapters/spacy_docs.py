"""What the spaCy component reads from a ``Doc``, and what it writes into it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spacy.pipeline import EntityLinker
from spacy.tokens import Doc, Span

from m3el_fast.errors import InputError

if TYPE_CHECKING:  # as in m3el_fast.adapters.spacy: torch can wait
    from m3el_fast.link import Links

NIL = EntityLinker.NIL
_PLAIN = (None, None, None, None)  # default, method, getter and setter of an attribute that holds what is written


class LinkedSpan(NamedTuple):
    """An entity of a ``Doc``, and the mention that a :class:`~m3el_fast.link.Linker` takes."""

    span: Span
    mention: dict[str, Any]


def register_extensions() -> None:
    """Register ``Doc._.image``, ``Span._.image``, ``Span._.kb_score`` and ``Span._.kb_candidates``, all None at first.

    An ``image`` that is there is used as it is (it may be computed by a getter).

    Raises:
        InputError: ``kb_score`` or ``kb_candidates`` is registered as something that cannot be written.
    """
    for holder in (Doc, Span):
        if not holder.has_extension("image"):
            holder.set_extension("image", default=None)
    for name in ("kb_score", "kb_candidates"):
        if not Span.has_extension(name):
            Span.set_extension(name, default=None)
        elif Span.get_extension(name) != _PLAIN:
            hint = "m3el_linker writes it: register the other one by another name"
            got = f"one with {_describe(Span.get_extension(name))}"
            raise InputError(f"extension Span._.{name}", "none, or an attribute with the default None", got, hint)


def mentions_of(doc: Doc, labels: Collection[str] | None, overwrite: bool) -> list[LinkedSpan]:
    """The entities to link.

    Their text is ``ent.text``; their sentence is the one (or are those) that they are in, the whole text where no
    sentence boundaries are set; their image ``ent._.image``, where that is None ``doc._.image``; "" stands for none.

    Args:
        labels: of the entities to link, None = all.
        overwrite: also those that have a KB id.

    Raises:
        InputError: an image is not a path.
    """
    sentences = doc.has_annotation("SENT_START")
    found = []
    for span in doc.ents:
        if (labels is None or span.label_ in labels) and (overwrite or not span.kb_id):
            sentence = _sentences(span) if sentences else doc.text
            found.append(LinkedSpan(span, {"mention": span.text, "sentence": sentence, "image": _image(span)}))
    return found


def write_links(span: Span, links: Links, threshold: float | None) -> None:
    """Write a mention's links into the entity: its KB id, :data:`NIL` where there is none; the best score; all links.

    Args:
        threshold: there is no KB id where the best score is below it, whatever its probability; None = where there is
            no :attr:`Links.entity`.
    """
    score = links[0]["score"] if links else None
    kb_id = links.entity
    if threshold is not None:
        kb_id = links[0]["id"] if score is not None and score >= threshold else None
    for token in span:  # all else that is known of the entity stays as it is
        token.ent_kb_id_ = NIL if kb_id is None else kb_id
    span._.kb_score = score
    span._.kb_candidates = list(links)


def _sentences(span: Span) -> str:
    text: str = span.doc[span[0].sent.start : span[-1].sent.end].text
    return text


def _image(span: Span) -> str | Path | None:
    for where, image in ((f"span._.image of {span.text!r}", span._.image), ("doc._.image", span.doc._.image)):
        if not isinstance(image, str | Path | None):
            raise InputError(where, "a path or None", type(image).__name__)
        if image is not None:
            return image
    return None


def _describe(extension: tuple[Any, Any, Any, Any]) -> str:
    default, method, getter, _ = extension
    return "a method" if method else "a getter" if getter else f"the default {default!r}"
