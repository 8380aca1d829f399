"""Link mentions to a KB: :class:`Linker`, and ``python -m m3el_fast.link CHECKPOINT --kb DIR --input F --output F``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from m3el_fast.data.images import ImageReport
from m3el_fast.data.layout import KnowledgeBase, Mention, read_kb, valid_text
from m3el_fast.dataset import kb_source, mention_source, open_images
from m3el_fast.errors import InputError, run_command
from m3el_fast.evaluate import checkpoint_data
from m3el_fast.files import replace_file, require_file_target
from m3el_fast.index import EntityIndex
from m3el_fast.models import MELModel, load_model
from m3el_fast.scorer import Scorer

COMPONENTS = ("text", "image", "t2v", "v2t")

_BLOCK = 256


class Linker:
    """Links mentions to the entities of one KB; encodes the KB when it is made.

    Args:
        model: a trained model.
        kb: the entities.
        strict_images: a missing or unreadable image, of an entity or a mention, is an error.
        progress: show progress bars.
    """

    def __init__(
        self, model: MELModel, kb: KnowledgeBase, *, strict_images: bool = False, progress: bool = False
    ) -> None:
        self.model, self.kb, self.strict_images, self.progress = model.eval(), kb, strict_images, progress
        cache = open_images([p for e in kb.entities for p in e.images[:1]], model.encoder, strict_images, progress)
        first_image = [type(e)(e.qid, e.name, e.attr, e.desc, e.images[:1]) for e in kb.entities]
        source = kb_source(KnowledgeBase(kb.root, first_image), model.config.data, model.encoder, cache)
        self.index = EntityIndex.build(model, source, progress=progress)
        self.scorer = Scorer(model, self.index)
        self.images = cache.report

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, kb: str | Path | None = None, **options: Any) -> Linker:
        """Load a checkpoint (folder or Hub name) and a KB folder in the MIMIC layout; default: the training KB.

        Raises:
            InputError: the checkpoint or the KB cannot be used.
        """
        model = load_model(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
        folder = checkpoint_data(model.config.data, None if kb is None else str(kb), "kb")
        return cls(model, read_kb(folder, model.config.data.entity_text), **options)

    def link(self, mentions: Sequence[Mapping[str, Any]], k: int = 10) -> list[list[dict[str, Any]]]:
        """The k best entities of each mention, best first (all of them where the KB has fewer).

        Args:
            mentions: mappings with ``mention`` (the name as it stands in the text), ``sentence`` and, if there is one,
                ``image`` (a path).
            k: how many.

        Returns:
            For each mention dicts with ``id``, ``name``, ``score`` (union) and ``components``: the scores ``text``,
            ``image``, ``t2v`` and ``v2t`` (None where the model's form lacks one).

        Raises:
            InputError: a mention lacks a field or has one of the wrong type; k is not positive; with
                ``strict_images`` an image cannot be used.
        """
        if k < 1:
            raise InputError("k", "at least 1", k)
        records = [parse_mention(record, f"mentions, record {i}") for i, record in enumerate(mentions, 1)]
        return self._link(records, k)[0]

    def _link(self, records: list[Mention], k: int) -> tuple[list[list[dict[str, Any]]], ImageReport]:
        paths = [m.image for m in records if m.image is not None]
        cache = open_images(paths, self.model.encoder, self.strict_images, False)
        links: list[list[dict[str, Any]]] = []
        bar = tqdm(total=len(records), desc="linking", unit="mention", disable=not self.progress, leave=False)
        with bar, torch.inference_mode():
            for start in range(0, len(records), _BLOCK):
                source = mention_source(records[start : start + _BLOCK], self.model.encoder, cache)
                inputs = source.inputs(torch.arange(len(source))).to(self.model.device)
                best = self.scorer.topk(self.model.mention_side(inputs), min(k, len(self.kb)))
                links += [self._answers(i, best.rows, best.scores) for i in range(len(source))]
                bar.update(len(source))
        return links, cache.report

    def _answers(self, mention: int, rows: torch.Tensor, scores: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        answers = []
        for place, row in enumerate(rows[mention].tolist()):
            entity = self.kb.entities[row]
            found = {name: float(score[mention, place]) for name, score in scores.items()}
            components = {name: found.get(name) for name in COMPONENTS}
            answers.append({"id": entity.qid, "name": entity.name, "score": found["union"], "components": components})
        return answers


def parse_mention(record: object, where: str, folder: Path | None = None) -> Mention:
    """Check one mention given by a caller; image paths are relative to ``folder``."""
    if not isinstance(record, Mapping):
        raise InputError(where, 'an object with "mention", "sentence" and perhaps "image"', type(record).__name__)
    unknown = set(record) - {"mention", "sentence", "image", "id"}
    if unknown:
        raise InputError(
            where, 'the fields "mention", "sentence", "image" and "id"', ", ".join(sorted(map(str, unknown)))
        )
    for field in ("mention", "sentence"):
        if not isinstance(record.get(field), str):
            raise InputError(f"{where}, field {field}", "a string", json.dumps(record.get(field), default=str))
    name = " ".join(valid_text(record["mention"]).split())
    image = _image(record.get("image"), f"{where}, field image", folder)
    return Mention(str(record.get("id", "")), name, valid_text(record["sentence"]), image, None)


def _image(image: object, where: str, folder: Path | None) -> Path | None:
    if not isinstance(image, str | Path | None):
        raise InputError(where, "a path or nothing", type(image).__name__)
    if not image:
        return None
    if "\0" in str(image):
        raise InputError(where, "a path", json.dumps(str(image)))
    path = Path(valid_text(image) if isinstance(image, str) else image)
    return path if folder is None else folder / path


def read_jsonl(path: Path) -> list[tuple[dict[str, Any], Mention]]:
    """The records of a JSON Lines file and the mentions in them; blank lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise InputError(path, "a JSON Lines file of mentions", "no such file") from None
    except OSError as error:
        raise InputError(path, "a readable file", error.strerror) from None
    except UnicodeDecodeError as error:
        raise InputError(path, "UTF-8 text", str(error)) from None
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
                raise InputError(f"{path}, line {number}", "a JSON object", str(error)) from None
            records.append((record, parse_mention(record, f"{path}, line {number}", path.parent)))
    return records


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="m3el link", description="Link mentions to the entities of a KB.")
    parser.add_argument("checkpoint", help="checkpoint folder or Hub name")
    parser.add_argument("--kb", metavar="DIR", help="KB in the MIMIC layout (default: that of the training)")
    parser.add_argument("--input", metavar="FILE", required=True, help='JSON Lines: {"mention", "sentence", "image"?}')
    parser.add_argument("--output", metavar="FILE", required=True, help="JSON Lines: each mention with its links")
    parser.add_argument("-k", type=int, default=10, help="links per mention (default 10)")
    parser.add_argument("--strict-images", action="store_true", help="a missing or unreadable image is an error")
    args = parser.parse_args(argv)
    if args.k < 1:
        raise InputError("-k", "at least 1", args.k)

    require_file_target(Path(args.output))
    records = read_jsonl(Path(args.input))
    linker = Linker.from_pretrained(args.checkpoint, args.kb, strict_images=args.strict_images, progress=True)
    links, images = linker._link([mention for _, mention in records], args.k)
    # a lone surrogate, half of a character where a text was cut, is written as the escape that it was read from
    with (
        replace_file(Path(args.output)) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as out,
    ):
        for (record, _), answers in zip(records, links, strict=True):
            out.write(json.dumps(record | {"links": answers}, ensure_ascii=False) + "\n")
    print(f"{len(links)} mentions linked to {len(linker.kb)} entities: {args.output}")
    for report in (linker.images, images):
        if report.summary():
            print(report.summary())


if __name__ == "__main__":
    run_command(main)
