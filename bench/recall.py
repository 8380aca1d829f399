"""What two-stage linking misses of the exhaustive scan, as a curve over the number of candidates.

``python -m bench.recall CHECKPOINT [--data DIR] [--index DIR]`` links every mention of the test split both ways, prints
the recall of the exact best and best ten, Hits@1 and the seconds of each, and writes them to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench import machine
from bench.cases.two_stage import CANDIDATES, recall
from m3el_fast.dataset import load_dataset, load_split
from m3el_fast.errors import run_command
from m3el_fast.evaluate import checkpoint_data
from m3el_fast.files import replace_file, require_file_target
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Side
from m3el_fast.models import load_model
from m3el_fast.scorer import Scorer

_K = 10


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", metavar="DIR", help="data set (default: that of the training)")
    parser.add_argument("--index", metavar="DIR", help="index of its KB (default: encode it)")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test")
    parser.add_argument("--output", type=Path, help="JSON file (default: in bench/results, by the data's name)")
    args = parser.parse_args(argv)
    model = load_model(args.checkpoint)
    config = model.config.data.model_copy(update={"kb_mentions": 0})
    folder = checkpoint_data(config, args.data, "--data")
    results = Path(__file__).parent / "results"
    output = args.output or results / f"recall-{folder.name.lower()}-{time.strftime('%Y-%m-%d')}.json"
    require_file_target(output)
    if args.index:
        index = EntityIndex.open(Path(args.index), model)
        split, _ = load_split(config, folder, model.encoder, args.split, index.row)
    else:
        data = load_dataset(config, folder, model.encoder, [args.split])
        split, index = data.splits[args.split], EntityIndex.build(model, data.entities)
    scorer = Scorer(model, index)
    with torch.inference_mode():
        blocks = torch.arange(len(split.gold)).split(scorer.batch)
        sides = [model.mention_side(split.source.inputs(block)) for block in tqdm(blocks, "encoding", leave=False)]
    record = {
        "machine": machine.describe(),
        "data": folder.name,
        "split": args.split,
        "mentions": len(split.gold),
        "entities": len(index),
        "curve": curve(scorer, sides, split.gold),
    }
    for line in record["curve"]:
        print(", ".join(f"{name} {value:,.5g}" for name, value in line.items()))
    with replace_file(output) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(split.gold)} mentions, {len(index)} entities: {output}")


def curve(scorer: Scorer, sides: list[Side], gold: Tensor) -> list[dict[str, Any]]:
    """One entry for each number of candidates, that of all entities first: the exhaustive scan."""
    lines = []
    exact = torch.empty(0)
    for candidates in (None, *CANDIDATES):
        start = time.perf_counter()
        found = torch.cat([scorer.topk(side, min(_K, len(scorer.index)), candidates).rows for side in sides])
        seconds = time.perf_counter() - start
        exact = found if candidates is None else exact
        recalls = {f"recall of the best {k}": recall(found, exact, k) for k in (1, _K)}
        hits = float((found[:, 0] == gold).float().mean())
        lines.append({"candidates": candidates or len(scorer.index), **recalls, "hits@1": hits, "seconds": seconds})
    return lines


if __name__ == "__main__":
    run_command(main)
