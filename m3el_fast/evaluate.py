"""``python -m m3el_fast.evaluate CHECKPOINT --data DIR``: rank every mention against the whole KB (spec section 6)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from m3el_fast.config import DataConfig
from m3el_fast.dataset import Split, load_dataset, load_split
from m3el_fast.devices import add_device_option, named_device
from m3el_fast.errors import InputError, run_command
from m3el_fast.files import replace_file, require_file_target
from m3el_fast.index import EntityIndex
from m3el_fast.metrics import Metrics, table
from m3el_fast.models import load_model
from m3el_fast.scorer import Scorer

ROW_NAMES = {"union": "full model", "text": "text only", "image": "image only", "cross": "cross-modal only"}


@torch.inference_mode()
def rank_split(scorer: Scorer, split: Split, rows: Tensor | None = None, progress: bool = True) -> dict[str, Tensor]:
    """Rank of the gold of each mention, by component, [M] fp64; mentions are streamed in blocks.

    Args:
        scorer: over an index whose rows are the golds of ``split``.
        rows: [M] int64, the mentions to rank; None = all of the split.
    """
    model = scorer.model.eval()
    rows = torch.arange(len(split.gold)) if rows is None else rows
    parts: list[dict[str, Tensor]] = []
    with tqdm(total=len(rows), desc="ranking", unit="mention", disable=not progress, leave=False) as bar:
        for block in rows.split(scorer.batch):
            side = model.mention_side(split.source.inputs(block).to(model.device))
            parts.append(scorer.ranks(side, split.gold[block]))
            bar.update(len(block))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def evaluate(scorer: Scorer, split: Split, progress: bool = True) -> dict[str, Metrics]:
    """Metrics of the union score and of each component, by name (``union``, ``text``, ``image``, ``cross``)."""
    return {name: Metrics.of(ranks) for name, ranks in rank_split(scorer, split, None, progress).items()}


def checkpoint_data(config: DataConfig, given: str | None, option: str) -> Path:
    """The data folder: the one given, else the one that the checkpoint was trained on."""
    folder = given or config.dir
    if folder is None:
        raise InputError(option, "a data set folder (the checkpoint names none)", "nothing")
    return Path(folder)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="m3el evaluate", description="Rank every mention against the whole KB.")
    parser.add_argument("checkpoint", help="checkpoint folder or Hub name")
    parser.add_argument("--data", metavar="DIR", help="data set in the MIMIC layout (default: that of the training)")
    parser.add_argument("--index", metavar="DIR", help="index of the KB (default: encode the data set's)")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test")
    parser.add_argument("--output", metavar="FILE", help="write the metrics as JSON too")
    parser.add_argument("--strict", action="store_true", help="an answer that is not in the KB is an error")
    parser.add_argument("--strict-images", action="store_true", help="a missing or unreadable image is an error")
    add_device_option(parser)
    args = parser.parse_args(argv)

    if args.output:
        require_file_target(Path(args.output))
    device = named_device(args.device)
    model = load_model(args.checkpoint).to(device)
    folder = checkpoint_data(model.config.data, args.data, "--data")
    changes = {"strict": args.strict, "strict_images": args.strict_images, "kb_mentions": 0}
    config = model.config.data.model_copy(update=changes)
    if args.index:
        index = EntityIndex.open(Path(args.index), model)
        split, images = load_split(config, folder, model.encoder, args.split, index.row)
    else:
        data = load_dataset(config, folder, model.encoder, [args.split])
        split, images = data.splits[args.split], data.images
        index = EntityIndex.build(model, data.entities)
    print(f"{folder}, {args.split}: {split.describe()}; KB: {len(index)} entities")
    scorer = Scorer(model, index)
    metrics = evaluate(scorer, split)
    print(table({ROW_NAMES[name]: value for name, value in metrics.items()}))
    print(scorer.stats.describe())
    if images:
        print(images)
    if args.output:
        record = {name: value.record() for name, value in metrics.items()}
        with replace_file(Path(args.output)) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
