"""``python -m m3el_fast.data``: write the sample data set, or look over a data set in the MIMIC layout."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from m3el_fast.data.layout import EntityText, KnowledgeBase, Split, read_kb, read_mentions
from m3el_fast.data.sample import write_sample
from m3el_fast.errors import run_command


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="m3el data", description="Data sets in the MIMIC layout.")
    commands = parser.add_subparsers(dest="command", required=True)
    sample = commands.add_parser("sample", help="write the generated sample data set")
    sample.add_argument("folder", type=Path, help="a new folder")
    sample.add_argument("--seed", type=int, default=0, help="another seed gives another set (default 0)")
    check = commands.add_parser("check", help="read a data set as training would, and count what is in it")
    check.add_argument("folder", type=Path)
    check.add_argument("--entity-text", choices=get_args(EntityText), default="attr", help="default attr")
    args = parser.parse_args(argv)
    if args.command == "sample":
        print(f"sample data set written to {write_sample(args.folder, args.seed)}")
    else:
        _check(args.folder, args.entity_text)


def _check(folder: Path, entity_text: EntityText) -> None:
    kb = read_kb(folder, entity_text)
    with_desc = sum(entity.desc is not None for entity in kb.entities)
    print(f"entities: {len(kb):,}, {with_desc:,} with desc")
    print(f"entity images: {_images(entity.images for entity in kb.entities)}")
    for split in get_args(Split):
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
