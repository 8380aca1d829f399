"""``python -m m3el_fast.data``: import your own data, look over a data set, or write the sample set."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from m3el_fast.data.importing import import_data
from m3el_fast.data.layout import EntityText, KnowledgeBase, Split, read_kb, read_mentions
from m3el_fast.data.sample import write_sample
from m3el_fast.errors import run_command

_IMPORT = """\
Make a data set that training reads from your own JSON Lines (UTF-8, one object a line) and pictures.

entities   {"id": "E1", "name": "Marlow", "text": "an inn by the sea"}
           perhaps "image": "inns/marlow.jpg" or "images": ["a.jpg", "b.png"]
mentions   {"mention": "Marlow", "sentence": "We slept at Marlow.", "answer": "E1"}
           answer null = no entity; perhaps "image": "day1.jpg", "id", and "split": "train", "dev" or "test"

Without "split", or a file for each, 70% of the mentions are for training, 10% dev and 20% test; all mentions of a
sentence go to the same. Images are hard links to yours, or copies where that is not possible. With a model that you
have, --test alone is enough to evaluate it, and no mentions at all make a KB to be indexed and linked to."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="m3el data", description="Data sets in the MIMIC layout.")
    commands = parser.add_subparsers(dest="command", required=True)
    importing = _add_import(commands)
    check = commands.add_parser("check", help="read a data set as training would, and count what is in it")
    check.add_argument("folder", type=Path, help="a data set")
    check.add_argument("--entity-text", choices=get_args(EntityText), default="attr", help="default attr")
    sample = commands.add_parser("sample", help="write the generated sample data set")
    sample.add_argument("folder", type=Path, help="a new folder")
    sample.add_argument("--seed", type=int, default=0, help="another seed gives another set (default 0)")
    args = parser.parse_args(argv)
    if args.command == "sample":
        print(f"sample data set written to {write_sample(args.folder, args.seed)}")
    elif args.command == "import":
        _import(importing, args)
    else:
        _check(args.folder, args.entity_text, get_args(Split))


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(
        "import", help="make one from your own JSON Lines and pictures", description=_IMPORT, formatter_class=form
    )
    command.add_argument("folder", type=Path, help="a new folder")
    command.add_argument("--entities", metavar="FILE", type=Path, required=True)
    command.add_argument("--mentions", metavar="FILE", type=Path, help="of all splits; or a file for each:")
    for split in get_args(Split):
        command.add_argument(f"--{split}", metavar="FILE", type=Path)
    for side in ("entity", "mention"):
        own = "folder of these images (default: that of the file that names them)"
        command.add_argument(f"--{side}-images", metavar="DIR", type=Path, help=own)
    command.add_argument("--seed", type=int, default=0, help="another seed splits otherwise (default 0)")
    return command


def _import(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    files: dict[Split, Path] = {split: path for split in get_args(Split) if (path := getattr(args, split)) is not None}
    if files and (args.mentions is not None or {*files} not in ({*get_args(Split)}, {"test"})):
        parser.error("give --mentions, or all of --train, --dev and --test, or --test alone, or none of them")
    mentions = files or args.mentions
    if mentions is None and args.mention_images is not None:
        parser.error("--mention-images: there are no mentions")
    found = import_data(
        args.folder,
        args.entities,
        mentions,
        entity_images=args.entity_images,
        mention_images=args.mention_images,
        seed=args.seed,
        progress=True,
    )
    print(f"data set written to {args.folder}")
    for line in found.warnings():
        print(line)
    _check(args.folder, "attr", files or (() if mentions is None else get_args(Split)))
    folder = shlex.quote(str(args.folder))
    if mentions is None:
        print(f"next: python -m m3el_fast.index build CHECKPOINT --kb {folder} --out INDEX")
    elif {*files} == {"test"}:
        print(f"next: python -m m3el_fast.evaluate CHECKPOINT --data {folder}")
    else:
        print(f"next: python -m m3el_fast.train --config wikimel --data {folder}")
        print("or, without a pretrained CLIP: --config scratch")


def _check(folder: Path, entity_text: EntityText, splits: Iterable[Split]) -> None:
    kb = read_kb(folder, entity_text)
    with_desc = sum(entity.desc is not None for entity in kb.entities)
    print(f"entities: {len(kb):,}, {with_desc:,} with desc")
    print(f"entity images: {_images(entity.images for entity in kb.entities)}")
    for split in splits:
        _check_split(kb, split)


def _check_split(kb: KnowledgeBase, split: Split) -> None:
    mentions = read_mentions(kb.root, split)
    nil = sum(mention.answer is None for mention in mentions)
    absent = sum(mention.answer is not None and mention.answer not in kb.row for mention in mentions)
    print(f"{split}: {len(mentions):,} mentions, {nil:,} nil, {absent:,} with an answer that is not in the KB")
    print(f"{split} images: {_images((mention.image,) if mention.image else () for mention in mentions)}")


def _images(owners: Iterable[tuple[Path, ...]]) -> str:
    lists = list(owners)
    distinct = {path for paths in lists for path in paths}
    missing = sum(not os.path.isfile(path) for path in distinct)
    return f"{len(distinct):,}, of which {missing:,} missing; {sum(not paths for paths in lists):,} without any"


if __name__ == "__main__":
    run_command(main)
