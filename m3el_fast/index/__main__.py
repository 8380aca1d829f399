"""``python -m m3el_fast.index build|add|remove|info|verify``: make an index of a KB, change it, look at it."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from m3el_fast.data.layout import KnowledgeBase, read_kb
from m3el_fast.data.tokenized import TokenizedSide
from m3el_fast.dataset import kb_source, open_images
from m3el_fast.errors import InputError, run_command
from m3el_fast.index.describe import describe
from m3el_fast.index.entity_index import EntityIndex
from m3el_fast.index.folder import require_new
from m3el_fast.index.manifest import Manifest
from m3el_fast.index.verify import verify
from m3el_fast.models import MELModel, load_model


class Entities(NamedTuple):
    """Entities of a KB folder; ``problems`` with their images, in words or empty."""

    source: TokenizedSide
    ids: list[str]
    names: list[str]
    problems: str


def read_entities(model: MELModel, folder: Path, strict_images: bool, only: Collection[str] | None) -> Entities:
    """The entities of a KB, or those with the ids ``only``. Raises InputError for defects, and for ids not in it."""
    kb = read_kb(folder, model.config.data.entity_text)
    unknown = [one for one in only or () if one not in kb.row]
    if unknown:
        raise InputError(folder, f"entities with the ids given ({len(unknown)} are not there)", repr(unknown[0]))
    chosen = kb.entities if only is None else [kb.entities[kb.row[one]] for one in only]
    entities = [replace(entity, images=entity.images[:1]) for entity in chosen]
    paths = [path for entity in entities for path in entity.images]
    cache = open_images(paths, model.encoder, strict_images, progress=True)
    source = kb_source(KnowledgeBase(kb.root, entities), model.config.data, model.encoder, cache)
    names = [entity.name for entity in entities]
    return Entities(source, [entity.qid for entity in entities], names, cache.report.summary())


def read_ids(path: Path) -> list[str]:
    """The ids in a text file, one on each line; blank lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(path, "a readable file of ids", error.strerror) from None
    except UnicodeDecodeError as error:
        raise InputError(path, "UTF-8 text", error) from None
    return [line for line in (line.removesuffix("\r") for line in lines) if line]


def _build(args: argparse.Namespace) -> None:
    require_new(args.out)
    model = _load(args.checkpoint)
    entities = read_entities(model, args.kb, args.strict_images, None)
    index = EntityIndex.build(
        model,
        entities.source,
        args.out,
        ids=entities.ids,
        names=entities.names,
        dtype=args.dtype,
        precision=args.precision,
    )
    _report(index, entities.problems)


def _add(args: argparse.Namespace) -> None:
    model = _load(args.checkpoint)
    index = EntityIndex.open(args.index, model)
    entities = read_entities(model, args.kb, args.strict_images, None if args.ids is None else read_ids(args.ids))
    _report(index.add(model, entities.source, ids=entities.ids, names=entities.names), entities.problems)


def _remove(args: argparse.Namespace) -> None:
    ids = [*args.id, *([] if args.file is None else read_ids(args.file))]
    _report(EntityIndex.open(args.index).remove(ids), "")


def _info(args: argparse.Namespace) -> None:
    _report(EntityIndex.open(args.index), "")


def _verify(args: argparse.Namespace) -> None:
    verify(args.index)
    print(f"{args.index}: all {len(Manifest.read(args.index).files)} files are as they were written")


def _load(checkpoint: str) -> MELModel:
    return load_model(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")


def _report(index: EntityIndex, problems: str) -> None:
    print(describe(index))
    if problems:
        print(problems)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="m3el index", description="An index of a KB's entities.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="encode a KB; goes on where the same command was stopped")
    build.add_argument("checkpoint", help="checkpoint folder or Hub name")
    build.add_argument("--kb", metavar="DIR", type=Path, required=True, help="KB in the MIMIC layout")
    build.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new folder")
    build.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of token rows (default bf16)")
    towers = "of the towers' products (default auto: bf16 where this machine is fast at it, else fp32)"
    build.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help=towers)
    build.set_defaults(run=_build)
    add = commands.add_parser("add", help="add entities of a KB to an index")
    add.add_argument("index", type=Path)
    add.add_argument("checkpoint", help="the one that the index was built with")
    add.add_argument("--kb", metavar="DIR", type=Path, required=True, help="KB in the MIMIC layout")
    add.add_argument("--ids", metavar="FILE", type=Path, help="ids of those to add, one a line (default: all)")
    add.set_defaults(run=_add)
    remove = commands.add_parser("remove", help="remove entities from an index")
    remove.add_argument("index", type=Path)
    remove.add_argument("id", nargs="*", help="ids of those to remove")
    remove.add_argument("--ids", dest="file", metavar="FILE", type=Path, help="more of them, one a line")
    remove.set_defaults(run=_remove)
    for name, run, text in (("info", _info, "what is in an index"), ("verify", _verify, "compare all checksums")):
        command = commands.add_parser(name, help=text)
        command.add_argument("index", type=Path)
        command.set_defaults(run=run)
    for command in (build, add):
        command.add_argument("--strict-images", action="store_true", help="a missing or unreadable image is an error")
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    run_command(main)
