"""``python -m m3el_fast.hub push CHECKPOINT owner/name``: put a checkpoint, and its index, on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from m3el_fast.checkpoint import given_index, index_of, stage
from m3el_fast.errors import run_command
from m3el_fast.files import replace_file
from m3el_fast.hub_card import edited
from m3el_fast.hub_transfer import CARD_FILE, require_repository_name
from m3el_fast.models import fetch_checkpoint, load_model


def _push(args: argparse.Namespace) -> None:
    require_repository_name(args.repository)
    checkpoint = fetch_checkpoint(args.checkpoint, with_index=args.index is None)
    model = load_model(checkpoint)
    folder = args.index or index_of(checkpoint)
    index = None if folder is None else given_index(model, folder)
    metadata = {} if args.license is None else {"license": args.license}
    if not args.dry_run:
        private = True if args.private else None
        print(model.push_to_hub(args.repository, index=index, model_card_kwargs=metadata, private=private))
        return
    with tempfile.TemporaryDirectory() as place:
        staged = Path(place)
        stage(model, staged, args.repository, index, model.card, metadata)
        print(f"would go to {constants.ENDPOINT}/{args.repository}{', private if it is new' if args.private else ''}:")
        print(_listing(staged))
        card = (staged / CARD_FILE).read_bytes()
    if not Path(args.checkpoint).is_dir():
        print(f"\n{card.decode(errors='replace')}")
    elif edited(card) is None:
        with replace_file(checkpoint / CARD_FILE) as temporary:
            temporary.write_bytes(card)
        print(f"card: {checkpoint / CARD_FILE}, written; what you change in it is kept")
    else:
        print(f"card: {checkpoint / CARD_FILE}, as it was edited")


def _listing(folder: Path) -> str:
    """The files below a folder and their sizes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    rows = [f"{size:>16,}  {path.relative_to(folder)}" for path, size in zip(files, sizes, strict=True)]
    return "\n".join([*rows, f"{sum(sizes):>16,}  bytes in {len(files)} files"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="m3el hub", description="Checkpoints on the Hugging Face Hub.")
    commands: Any = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="make a checkpoint, and its index, that of a repository")
    push.add_argument("checkpoint", help="checkpoint folder or Hub name")
    push.add_argument("repository", help="owner/name, created where there is none")
    push.add_argument("--index", metavar="DIR", help="index to go along (default: the checkpoint's, if it has one)")
    push.add_argument("--private", action="store_true", help="only you see a repository that is created")
    push.add_argument("--license", metavar="ID", help="of the weights, for the card: apache-2.0, mit, cc-by-4.0, ...")
    push.add_argument("--dry-run", action="store_true", help="send nothing: write the card, list what would be sent")
    push.set_defaults(run=_push)
    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    run_command(main)
