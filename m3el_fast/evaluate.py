"""``python -m m3el_fast.evaluate CHECKPOINT --data DIR``: rank every mention against the whole KB (spec section 6)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from m3el_fast.calibration import chosen_threshold
from m3el_fast.calibration_metrics import calibration_metrics
from m3el_fast.config import DataConfig
from m3el_fast.dataset import Split, SplitName, load_dataset, load_split
from m3el_fast.devices import add_device_option, named_device
from m3el_fast.errors import InputError, run_command
from m3el_fast.evaluate_answers import answer, join, unanswered
from m3el_fast.files import replace_file, require_file_target
from m3el_fast.hub_results import data_name
from m3el_fast.index import EntityIndex
from m3el_fast.metrics import Metrics, table
from m3el_fast.models import MELModel, load_model
from m3el_fast.report.contents import SHOWN, Report, entities_in
from m3el_fast.report.page import page
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


def checkpoint_split(
    model: MELModel, config: DataConfig, folder: Path, name: SplitName, index: str | None
) -> tuple[Split, EntityIndex, str]:
    """A split and the index of the KB that its golds are rows of.

    Args:
        index: its folder; None = the KB in ``folder`` is encoded.

    Returns:
        Also how many images could not be used, as in :class:`~m3el_fast.dataset.Dataset`.
    """
    if index:
        opened = EntityIndex.open(Path(index), model)
        split, images = load_split(config, folder, model.encoder, name, opened.row)
        return split, opened, images
    data = load_dataset(config, folder, model.encoder, [name])
    ids, names = [entity.qid for entity in data.kb.entities], [entity.name for entity in data.kb.entities]
    return data.splits[name], EntityIndex.build(model, data.entities, ids=ids, names=names), data.images


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="m3el evaluate", description="Rank every mention against the whole KB.")
    parser.add_argument("checkpoint", help="checkpoint folder or Hub name")
    parser.add_argument("--data", metavar="DIR", help="data set in the MIMIC layout (default: that of the training)")
    parser.add_argument("--index", metavar="DIR", help="index of the KB (default: encode the data set's)")
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test")
    dropped = "a best entity less probable than P is none (default: the checkpoint's)"
    parser.add_argument("--nil-threshold", metavar="P", type=float, help=dropped)
    parser.add_argument("--output", metavar="FILE", help="write the metrics as JSON too")
    parser.add_argument("--report", metavar="FILE", help="write a page to look at: figures and the worst misses (HTML)")
    parser.add_argument("--strict", action="store_true", help="an answer that is not in the KB is an error")
    parser.add_argument("--strict-images", action="store_true", help="a missing or unreadable image is an error")
    add_device_option(parser)
    args = parser.parse_args(argv)

    for target in filter(None, (args.output, args.report)):
        require_file_target(Path(target))
    if args.output and args.report and Path(args.output).resolve() == Path(args.report).resolve():
        raise InputError("--report", "another file than --output", args.report)
    device = named_device(args.device)
    model = load_model(args.checkpoint).to(device)
    threshold = chosen_threshold("--nil-threshold", model.calibration, args.nil_threshold)
    folder = checkpoint_data(model.config.data, args.data, "--data")
    changes = {"strict": args.strict, "strict_images": args.strict_images, "kb_mentions": 0}
    config = model.config.data.model_copy(update=changes)
    split, index, images = checkpoint_split(model, config, folder, args.split, args.index)
    print(f"{folder}, {args.split}: {split.describe()}; KB: {len(index)} entities")
    described = entities_in(folder, config) if args.report else {}
    scorer, calibration = Scorer(model, index), model.calibration
    without = None if calibration is None else unanswered(config, folder, model.encoder, args.split, index.row)
    temperatures = () if calibration is None else (calibration.temperature,)
    answered, *rest = answer(scorer, [split] if without is None else [split, without], SHOWN, temperatures, ranked=True)
    metrics = {name: Metrics.of(ranks) for name, ranks in answered.ranks.items()}
    named = {ROW_NAMES[name]: value for name, value in metrics.items()}
    print(table(named))
    record: dict[str, object] = {name: value.record() for name, value in metrics.items()}
    trust = None
    if calibration is None:
        print(f"not calibrated: m3el calibrate {args.checkpoint} fits probabilities to the dev split")
    else:
        trust = calibration_metrics(join([answered, *rest]).evidence(), calibration, threshold)
        print(trust.describe())
        record["calibration"] = trust.record()
    print(scorer.stats.describe())
    if images:
        print(images)
    if args.output:
        with replace_file(Path(args.output)) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if args.report:
        subject = args.checkpoint, data_name(folder), args.split
        report = Report(*subject, split, answered, index, named, calibration, trust, described)
        with replace_file(Path(args.report)) as temporary:
            temporary.write_text(page(report), encoding="utf-8", errors="replace")
        print(f"report: {args.report}")


if __name__ == "__main__":
    run_command(main)
