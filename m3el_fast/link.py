"""Link mentions to a KB: :class:`Linker`, and ``python -m m3el_fast.link CHECKPOINT --kb DIR --input F --output F``."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from m3el_fast.calibration import HOW_TO_CALIBRATE, Calibration, check_threshold, chosen_threshold
from m3el_fast.checkpoint import index_of
from m3el_fast.data.cache import ImageCache
from m3el_fast.data.images import ImageReport
from m3el_fast.data.layout import KnowledgeBase, read_kb
from m3el_fast.dataset import kb_source, mention_source, open_images
from m3el_fast.devices import add_device_option, named_device
from m3el_fast.errors import InputError, run_command
from m3el_fast.evaluate import checkpoint_data
from m3el_fast.files import replace_file, require_file_target
from m3el_fast.index import EntityIndex
from m3el_fast.link_input import Request, parse_request, read_jsonl
from m3el_fast.models import MELModel, fetch_checkpoint, load_model
from m3el_fast.scorer import Scorer, TopK
from m3el_fast.scoring.candidates import candidate_number

COMPONENTS = ("text", "image", "t2v", "v2t")


class Links(list[dict[str, Any]]):
    """The links of a mention, best first.

    Attributes:
        entity: id of the best one; None = there is none, or it is less probable than the NIL threshold.
    """

    def __init__(self, links: Iterable[dict[str, Any]], nil_threshold: float | None) -> None:
        super().__init__(links)
        good = len(self) > 0 and (nil_threshold is None or self[0]["probability"] >= nil_threshold)
        self.entity: str | None = self[0]["id"] if good else None


class Linker:
    """Links mentions to the entities of one KB.

    Args:
        model: a trained model.
        kb: the entities, which are encoded here; or
        index: the entities encoded before, with this model.
        strict_images: a missing or unreadable image, of an entity or a mention, is an error.
        progress: show progress bars.

    Raises:
        InputError: not one of ``kb`` and ``index``, the index is of another model, or an image cannot be used.
    """

    def __init__(
        self,
        model: MELModel,
        kb: KnowledgeBase | None = None,
        *,
        index: EntityIndex | None = None,
        strict_images: bool = False,
        progress: bool = False,
    ) -> None:
        if kb is not None and index is not None:
            raise InputError("linker", "either a KB or an index", "both")
        self.model, self.strict_images, self.progress = model.eval(), strict_images, progress
        self.images = ImageReport()
        if index is None:
            if kb is None:
                raise InputError("linker", "either a KB or an index", "neither")
            index = self._encode(kb)
        self.index = index
        self.scorer = Scorer(model, index)

    def _encode(self, kb: KnowledgeBase) -> EntityIndex:
        encoder, strict, progress = self.model.encoder, self.strict_images, self.progress
        cache = open_images([p for e in kb.entities for p in e.images[:1]], encoder, strict, progress)
        self.images = cache.report
        first_image = [type(e)(e.qid, e.name, e.attr, e.desc, e.images[:1]) for e in kb.entities]
        source = kb_source(KnowledgeBase(kb.root, first_image), self.model.config.data, encoder, cache)
        ids, names = [e.qid for e in kb.entities], [e.name for e in kb.entities]
        return EntityIndex.build(self.model, source, ids=ids, names=names, progress=progress)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        kb: str | Path | None = None,
        *,
        index: str | Path | None = None,
        device: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> Linker:
        """Load a checkpoint (folder or Hub name) and a KB folder in the MIMIC layout, or in its place the folder of an
        index. Without either: the index that comes with the checkpoint, else the training KB.

        Args:
            device: ``cpu``, ``cuda`` or ``cuda:N``; None = a GPU where there is one.
            revision: branch, tag or commit on the Hub (None = main); token: None = that of ``hf auth login``.
            options: of :class:`Linker`.

        Raises:
            InputError: the checkpoint, the KB, the index or the device cannot be used, or there are both a KB and an
                index.
        """
        if kb is not None and index is not None:
            raise InputError("linker", "either a KB or an index", "both")
        place = named_device(device)
        own = kb is None and index is None
        found = fetch_checkpoint(checkpoint, with_index=own, revision=revision, token=token)
        model = load_model(found).to(place)
        if own:
            index = index_of(found)
        if index is not None:
            return cls(model, index=EntityIndex.open(Path(index), model), **options)
        folder = checkpoint_data(model.config.data, None if kb is None else str(kb), "kb")
        return cls(model, read_kb(folder, model.config.data.entity_text), **options)

    def link(
        self,
        mentions: Sequence[Mapping[str, Any]],
        k: int = 10,
        candidates: Sequence[Sequence[str] | None] | int | None = None,
        *,
        nil_threshold: float | None = None,
    ) -> list[Links]:
        """The k best entities of each mention, best first (all of them where there are fewer).

        Args:
            mentions: mappings with ``mention`` (the name as it stands in the text), ``sentence`` and, if there is one,
                ``image`` (a path; one that cannot be read counts as none, with a warning); ``candidates`` (ids of
                entities) limits the choice to them. ``id``, ``answer`` and ``split`` are not looked at, and other
                fields are refused.
            k: how many.
            candidates: for each mention the ids to choose from, in place of the mappings' own, None = all entities; or
                a number of at least k: for mentions without ids of their own, reranked are so many entities with the
                best coarse scores, which is fast and approximate (:meth:`Scorer.topk`).
            nil_threshold: a mention whose best entity is less probable has none; None = as the checkpoint's
                calibration says; 0 = every mention gets its best entity.

        Returns:
            For each mention a list of dicts, and its :attr:`Links.entity`. They have ``id``, ``name``, ``score``
            (union), ``probability`` and ``components``: the scores ``text``, ``image``, ``t2v`` and ``v2t`` (None where
            the model's form lacks one). The probability, None of a checkpoint that is not calibrated, is that of a
            softmax over all that there was to choose from (all entities; the given candidates; or the number of
            entities that are reranked) and, where it was fitted, having no answer
            (:class:`~m3el_fast.calibration.Calibration`).

        Raises:
            InputError: a mention lacks a field or has one of the wrong type; a candidate is not among the entities; k
                is not positive, or above the number of candidates; the model has no coarse score; with
                ``strict_images`` an image cannot be used; ``nil_threshold`` is no probability, or the checkpoint is not
                calibrated.
        """
        threshold = chosen_threshold("nil_threshold", self.model.calibration, nil_threshold)
        if k < 1:
            raise InputError("k", "at least 1", k)
        number = candidate_number(candidates, k)
        if candidates is not None and number is None:
            assert not isinstance(candidates, int)
            if len(candidates) != len(mentions):
                raise InputError("candidates", f"one list of ids for each of {len(mentions)} mentions", len(candidates))
            mentions = [
                {**record, "candidates": own} if isinstance(record, Mapping) else record
                for record, own in zip(mentions, candidates, strict=True)
            ]
        requests = [parse_request(record, f"mentions, record {i}") for i, record in enumerate(mentions, 1)]
        found, images = self._link(requests, k, number)
        if lost := images.summary():
            warnings.warn(lost, stacklevel=2)
        return [Links(links, threshold) for links in found]

    def _link(
        self, requests: list[Request], k: int, candidates: int | None
    ) -> tuple[list[list[dict[str, Any]]], ImageReport]:
        """The links, and what became of the images; ``candidates``: how many of mentions without ids, None = all."""
        rows, cache = self._rows(requests), self._images(requests)
        links: list[list[dict[str, Any]]] = [[] for _ in requests]
        bar = tqdm(total=len(requests), desc="linking", unit="mention", disable=not self.progress, leave=False)
        with bar, torch.inference_mode():
            for limited in (False, True):
                places = [i for i, request in enumerate(requests) if (request.candidates is not None) == limited]
                for start in range(0, len(places), self.scorer.batch):
                    block = places[start : start + self.scorer.batch]
                    source = mention_source([requests[i].mention for i in block], self.model.encoder, cache)
                    side = self.model.mention_side(source.inputs(torch.arange(len(block))).to(self.model.device))
                    own = [rows[i] for i in block] if limited else candidates
                    best = self.scorer.topk(side, min(k, len(self.index)), own, self._temperatures)
                    for i, answers in zip(block, self._answers(best), strict=True):
                        links[i] = answers
                    bar.update(len(block))
        return links, cache.report

    def _images(self, requests: list[Request]) -> ImageCache:
        """The decoded images of the mentions."""
        paths = [request.mention.image for request in requests if request.mention.image is not None]
        return open_images(paths, self.model.encoder, self.strict_images, False)

    @property
    def _temperatures(self) -> tuple[float, ...]:
        """At which scoring is to give log partitions."""
        return () if self.model.calibration is None else (self.model.calibration.temperature,)

    def _rows(self, requests: list[Request]) -> dict[int, Tensor]:
        """The rows of the candidates of those requests that have some, by the request's place."""
        given = {i: request.candidates for i, request in enumerate(requests) if request.candidates is not None}
        found = self.index.find([one for ids in given.values() for one in ids])
        rows = dict(zip(given, found.split([len(ids) for ids in given.values()]), strict=True))
        for i, own in rows.items():
            if len(unknown := (own < 0).nonzero()[:, 0]):
                expected, got = "ids of entities to link to", repr(given[i][int(unknown[0])])
                raise InputError(f"{requests[i].where}, field candidates", expected, got)
        return rows

    def _answers(self, best: TopK) -> list[list[dict[str, Any]]]:
        """The links of a block of mentions."""
        mention, place = (best.rows >= 0).nonzero(as_tuple=True)
        rows = best.rows[mention, place]
        scores = {name: score[mention, place].tolist() for name, score in best.scores.items()}
        probabilities: list[float | None] = [None] * len(rows)
        if self.model.calibration is not None and best.log_partition is not None:
            found = self.model.calibration.probability(best.scores["union"], best.log_partition[:, 0])
            probabilities = found[mention, place].tolist()
        ids, names = self.index.ids.gather(rows), self.index.names.gather(rows)
        answers: list[list[dict[str, Any]]] = [[] for _ in best.rows]
        for at, own in enumerate(mention.tolist()):
            components = {name: scores[name][at] if name in scores else None for name in COMPONENTS}
            entity = {"id": ids[at], "name": names[at], "score": scores["union"][at]}
            answers[own].append({**entity, "probability": probabilities[at], "components": components})
        return answers


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="m3el link", description="Link mentions to the entities of a KB.")
    parser.add_argument("checkpoint", help="checkpoint folder or Hub name")
    entities = parser.add_mutually_exclusive_group()
    entities.add_argument("--kb", metavar="DIR", help="KB in the MIMIC layout (default: that of the training)")
    entities.add_argument("--index", metavar="DIR", help="index to link to (default: the checkpoint's, if it has one)")
    form = 'JSON Lines: {"mention", "sentence", "image"?, "candidates"?}; candidates are ids to choose from'
    parser.add_argument("--input", metavar="FILE", required=True, help=form)
    own = "folder of these images (default: that of the input)"
    parser.add_argument("--images", metavar="DIR", type=Path, help=own)
    parser.add_argument("--output", metavar="FILE", required=True, help="JSON Lines: each mention with its links")
    parser.add_argument("-k", type=int, default=10, help="links per mention (default 10)")
    coarse = "rerank the C entities with the best coarse scores: fast, approximate (default: all entities, exact)"
    parser.add_argument("--candidates", metavar="C", type=int, help=coarse)
    dropped = "a mention whose best entity is less probable has none, null (default: the checkpoint's; 0: never)"
    parser.add_argument("--nil-threshold", metavar="P", type=float, help=dropped)
    parser.add_argument("--strict-images", action="store_true", help="a missing or unreadable image is an error")
    add_device_option(parser)
    args = parser.parse_args(argv)
    if args.k < 1:
        raise InputError("-k", "at least 1", args.k)
    if args.candidates is not None and args.candidates < args.k:
        raise InputError("--candidates", f"at least {args.k} (-k)", args.candidates)
    check_threshold("--nil-threshold", args.nil_threshold)

    require_file_target(Path(args.output))
    if args.images is not None and not args.images.is_dir():
        raise InputError("--images", "a folder of images", args.images)
    records = read_jsonl(Path(args.input), args.images)
    device = str(named_device(args.device))
    checkpoint = fetch_checkpoint(args.checkpoint, with_index=args.kb is None and args.index is None)
    calibration = Calibration.read(checkpoint)
    nil_threshold = chosen_threshold("--nil-threshold", calibration, args.nil_threshold)
    linker = Linker.from_pretrained(
        checkpoint, args.kb, index=args.index, device=device, strict_images=args.strict_images, progress=True
    )
    links, images = linker._link([request for _, request in records], args.k, args.candidates)
    found = [Links(answers, nil_threshold).entity for answers in links]
    # a lone surrogate, half of a character where a text was cut, is written as the escape that it was read from
    with (
        replace_file(Path(args.output)) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as out,
    ):
        for (record, _), entity, answers in zip(records, found, links, strict=True):
            out.write(json.dumps(record | {"entity": entity, "links": answers}, ensure_ascii=False) + "\n")
    none = f", {found.count(None)} of them to none (probability below {nil_threshold:.4g})" if nil_threshold else ""
    print(f"{len(links)} mentions linked to {len(linker.index)} entities{none}: {args.output}")
    if calibration is None:
        print(f"probabilities are null: the checkpoint is not calibrated ({HOW_TO_CALIBRATE})")
    for report in (linker.images, images):
        if report.summary():
            print(report.summary())


if __name__ == "__main__":
    run_command(main)
