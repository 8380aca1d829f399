"""A spaCy component that links entities: ``nlp.add_pipe("m3el_linker", config={"checkpoint": DIR, "index": DIR})``."""

# no `from __future__ import annotations`: spaCy checks a component's settings only against types that are no strings
import io
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3el_fast.adapters.extras import require
from m3el_fast.errors import InputError

require("spacy", "spacy")

from spacy.language import Language  # noqa: E402
from spacy.pipeline import Pipe  # noqa: E402
from spacy.scorer import Scorer  # noqa: E402
from spacy.tokens import Doc  # noqa: E402
from spacy.training import Example  # noqa: E402

from m3el_fast.adapters.spacy_docs import NIL, LinkedSpan, mentions_of, register_extensions, write_links  # noqa: E402

if TYPE_CHECKING:  # spaCy imports this module for every pipeline, with this component or without: torch can wait
    from m3el_fast.link import Linker


@dataclass(frozen=True)
class Settings:
    """The settings of a component, as in its config: see :func:`make_linker`."""

    checkpoint: str | None
    index: str | None
    kb: str | None
    k: int
    candidates: int | None
    threshold: float | None
    device: str | None
    labels: list[str] | None
    overwrite: bool
    batch_size: int


@dataclass(frozen=True)
class Places:
    """Where a component's model and entities are, or come from."""

    checkpoint: str | None
    index: str | None
    kb: str | None


@Language.factory(
    "m3el_linker",
    default_config={
        "checkpoint": None,
        "index": None,
        "kb": None,
        "k": 10,
        "candidates": None,
        "threshold": None,
        "device": None,
        "labels": None,
        "overwrite": True,
        "batch_size": 256,
    },
    requires=["doc.ents"],
    assigns=["token.ent_kb_id", "span._.kb_score", "span._.kb_candidates"],
    default_score_weights={"nel_micro_f": 1.0, "nel_micro_r": None, "nel_micro_p": None},
)
def make_linker(
    nlp: Language,
    name: str,
    checkpoint: str | None,
    index: str | None,
    kb: str | None,
    k: int,
    candidates: int | None,
    threshold: float | None,
    device: str | None,
    labels: list[str] | None,
    overwrite: bool,
    batch_size: int,
) -> "M3ELLinker":
    """The component for a config.

    Args:
        checkpoint: folder or Hub name; may be None where the component is then loaded (``from_disk``, ``from_bytes``).
        index: folder of an index of the KB; or
        kb: folder of a KB in the MIMIC layout, encoded when the component is first used. Without either: the index that
            comes with the checkpoint, else the training KB.
        k: links kept of each mention, in ``ent._.kb_candidates``.
        candidates: link in two stages, reranking so many entities for each mention, which is fast and approximate;
            None = all entities, exact (:meth:`Linker.link`).
        threshold: a best score below it makes a mention ``NIL``; None = a best probability below the NIL threshold of
            the checkpoint's calibration does, if it has one.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None = a GPU where there is one.
        labels: of the entities to link, the others are left as they are; None = all.
        overwrite: link entities that have a KB id, too.
        batch_size: ``nlp.pipe`` links so many mentions at a time, or those of as many docs as it buffers.

    Raises:
        InputError: settings that contradict each other or are out of range, or an extension that another has
            registered (:func:`register_extensions`).
    """
    if index is not None and kb is not None:
        raise InputError(name, "either index or kb", "both")
    # spaCy has compared the values with the types above, but lets pass text that reads as a number
    for key, value, least in (("k", k, 1), ("batch_size", batch_size, 1), ("candidates", candidates, k)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise InputError(f"{name}, key {key}", f"a whole number of at least {least}", repr(value))
    if threshold is not None and not (isinstance(threshold, float | int) and math.isfinite(threshold)):
        raise InputError(f"{name}, key threshold", "a finite number", repr(threshold))
    register_extensions()
    settings = Settings(checkpoint, index, kb, k, candidates, threshold, device, labels, overwrite, batch_size)
    return M3ELLinker(name, settings)


class M3ELLinker(Pipe):
    """Links the entities of docs to those of one KB.

    Writes ``ent.kb_id_`` (``NIL`` of a mention without a good entity), ``ent._.kb_score`` (of the best entity) and
    ``ent._.kb_candidates`` (the k best, as :meth:`Linker.link` gives them); both are None of an entity that was not
    asked for. The model is opened when it is first needed.

    Pickles, as for the processes of ``nlp.pipe(n_process=2)``, carry the places of checkpoint and index, not these.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        self._places = Places(settings.checkpoint, settings.index, settings.kb)
        self._linker: Linker | None = None
        self._process = os.getpid()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name in ("_places", "error_handler")}
        return type(self), (self.name, self.settings), state

    def __setstate__(self, state: dict[str, Any]) -> None:  # in place of Pipe's, which knows its own state only
        self.__dict__.update(state)

    @property
    def linker(self) -> "Linker":
        """The linker behind the component, opened when it is first asked for.

        Raises:
            InputError: as :meth:`Linker.from_pretrained`; there is no checkpoint; this is a fork of a process that had
                opened the linker on a GPU.
        """
        if self._process != os.getpid():
            self._enter_fork()
        return self._linker or self._open(self._places)

    def _open(self, places: Places) -> "Linker":
        from m3el_fast.link import Linker

        if places.checkpoint is None:
            hint = 'nlp.add_pipe("m3el_linker", config={"checkpoint": ...}), or load a saved pipeline'
            raise InputError(f"{self.name}, key checkpoint", "a checkpoint folder or Hub name", "none", hint)
        device = self.settings.device
        linker = Linker.from_pretrained(places.checkpoint, places.kb, index=places.index, device=device)
        if lost := linker.images.summary():
            warnings.warn(f"{self.name}: {lost}", stacklevel=2)
        self._linker, self._places = linker, Places(places.checkpoint, str(linker.index.path), None)
        return linker

    def _enter_fork(self) -> None:
        import torch

        if self._linker is not None and self._linker.model.device.type != "cpu":
            got = f"a fork of a process that uses {self._linker.model.device}"
            raise InputError("nlp.pipe", "n_process=1 where the linker is on a GPU, or the device cpu", got)
        torch.set_num_threads(1)  # the other threads are the parent's: work given to them would never end
        self._process = os.getpid()

    # -- linking ------------------------------------------------------------------------------------------------------

    def __call__(self, doc: Doc) -> Doc:
        self._link(self._mentions(doc))
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Link the entities of a stream of docs, many at a time; ``batch_size``: docs to buffer at most.

        What fails goes to the error handler: the doc that has an unusable setting, or the docs of a failing batch.

        Raises:
            InputError: as :attr:`linker`, whatever the error handler.
        """
        for docs, mentions in self._batches(stream, batch_size):
            if mentions:
                _ = self.linker  # opened out here, for its errors are not the docs'
            try:
                self._link(mentions)
            except Exception as error:
                self.get_error_handler()(self.name, self, docs, error)
            else:
                yield from docs

    def _batches(self, stream: Iterable[Doc], size: int) -> Iterator[tuple[list[Doc], list[LinkedSpan]]]:
        docs: list[Doc] = []
        mentions: list[LinkedSpan] = []
        for doc in stream:
            try:
                mentions += self._mentions(doc)
            except Exception as error:
                self.get_error_handler()(self.name, self, [doc], error)
                continue
            docs.append(doc)
            if len(docs) >= size or len(mentions) >= self.settings.batch_size:
                yield docs, mentions
                docs, mentions = [], []
        if docs:
            yield docs, mentions

    def _mentions(self, doc: Doc) -> list[LinkedSpan]:
        return mentions_of(doc, self.settings.labels, self.settings.overwrite)

    def _link(self, mentions: list[LinkedSpan]) -> None:
        if not mentions:
            return
        links = self.linker.link([one.mention for one in mentions], self.settings.k, self.settings.candidates)
        for one, found in zip(mentions, links, strict=True):
            write_links(one.span, found, self.settings.threshold)

    # -- what spaCy asks of a component -------------------------------------------------------------------------------

    def initialize(self, get_examples: Callable[[], Iterable[Example]], *, nlp: Language | None = None) -> None:
        """Open the model now. Raises InputError as :attr:`linker`."""
        _ = self.linker

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Precision, recall and F of the links, as of spaCy's own ``entity_linker``: ``nel_micro_f`` and others."""
        scores: dict[str, Any] = Scorer.score_links(examples, negative_labels=[NIL])
        return scores

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Write all that is needed to link on any machine: a checkpoint folder with its index in it.

        It appears whole or not at all, and takes the place of one that is there.

        Args:
            exclude: ``index``, which then stays where the config says.

        Raises:
            InputError: as :attr:`linker`, or there is a folder of other files.
        """
        linker = self.linker
        linker.model.save_pretrained(path, index=None if "index" in exclude else linker.index)

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> "M3ELLinker":
        """Open what :meth:`to_disk` wrote, in place of what the config says; that holds for an index that is not there.

        Where there is no folder at all (``nlp.to_disk(exclude=["m3el_linker"])``) everything stays as configured.

        Raises:
            InputError: as :attr:`linker`, or there is neither a folder nor a checkpoint in the config.
        """
        folder = Path(path).absolute()
        if folder.is_dir():
            own = "index" not in exclude and (folder / "index").is_dir()
            index, kb = (None, None) if own else (self.settings.index, self.settings.kb)
            self._open(Places(str(folder), index, kb))
        elif self.settings.checkpoint is None:
            raise InputError(path, "a folder that to_disk wrote", "none, and no checkpoint in the config")
        return self

    def to_bytes(self, *, exclude: Iterable[str] = ()) -> bytes:
        """What :meth:`to_disk` writes, as a zip file: all in memory, so for small indexes."""
        archive = io.BytesIO()
        with tempfile.TemporaryDirectory() as temporary, zipfile.ZipFile(archive, "w") as file:
            folder = Path(temporary) / "m3el_linker"
            self.to_disk(folder, exclude=exclude)
            for one in sorted(folder.rglob("*")):
                file.write(one, one.relative_to(folder))
        return archive.getvalue()

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> "M3ELLinker":
        """Open what :meth:`to_bytes` gave, unpacked into a temporary folder. Raises InputError as :meth:`from_disk`."""
        folder = tempfile.TemporaryDirectory(prefix="m3el-spacy-")
        try:
            with zipfile.ZipFile(io.BytesIO(bytes_data)) as file:
                file.extractall(folder.name)
        except zipfile.BadZipFile as error:
            raise InputError(f"{self.name}, from_bytes", "what to_bytes gave", error) from None
        self.from_disk(folder.name, exclude=exclude)
        self._folder = folder  # removed with the component
        return self
