"""``python -m m3el_fast.calibrate CHECKPOINT``: fit probabilities to the dev split; keep them with it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from m3el_fast.calibration import CALIBRATION_FILE, Calibration
from m3el_fast.calibration_fit import TEMPERATURES, Evidence, fit
from m3el_fast.calibration_metrics import calibration_metrics
from m3el_fast.dataset import SplitName
from m3el_fast.devices import add_device_option, named_device
from m3el_fast.errors import InputError, run_command
from m3el_fast.evaluate import checkpoint_data, checkpoint_split
from m3el_fast.evaluate_answers import answer, join, unanswered
from m3el_fast.files import require_file_target
from m3el_fast.hub_results import data_name
from m3el_fast.models import load_model
from m3el_fast.scorer import Scorer

SPLIT: SplitName = "dev"


def calibrate(evidence: Evidence, data: str, entities: int) -> Calibration:
    """The calibration that suits the evidence best (:func:`fit`); ``data`` names the data set."""
    temperature, nil_score, nil_threshold = fit(evidence)
    return Calibration(
        temperature=temperature,
        nil_score=nil_score,
        nil_threshold=nil_threshold,
        data=data,
        entities=entities,
        mentions=len(evidence.gold),
        nil=int(evidence.nil.sum()),
    )


def main(argv: list[str] | None = None) -> None:
    description = f"Fit probabilities to the dev split and write {CALIBRATION_FILE} into the checkpoint."
    parser = argparse.ArgumentParser(prog="m3el calibrate", description=description)
    parser.add_argument("checkpoint", help="checkpoint folder")
    parser.add_argument("--data", metavar="DIR", help="data set in the MIMIC layout (default: that of the training)")
    parser.add_argument("--index", metavar="DIR", help="index of the KB (default: encode the data set's)")
    add_device_option(parser)
    args = parser.parse_args(argv)

    target = Path(args.checkpoint)
    if not target.is_dir():
        hint = "Of a checkpoint on the Hub save a copy first: load_model(NAME).save_pretrained(DIR)"
        raise InputError(target, "a checkpoint folder, to write into", "no such folder", hint)
    require_file_target(target / CALIBRATION_FILE)
    model = load_model(target).to(named_device(args.device))
    folder = checkpoint_data(model.config.data, args.data, "--data")
    config = model.config.data
    split, index, images = checkpoint_split(model, config, folder, SPLIT, args.index)
    without = unanswered(config, folder, model.encoder, SPLIT, index.row)
    splits = [split] if without is None else [split, without]
    print(f"{folder}, {SPLIT}: {split.describe()}; KB: {len(index)} entities")
    evidence = join(answer(Scorer(model, index), splits, 1, TEMPERATURES)).evidence()
    found = calibrate(evidence, data_name(folder), len(index))
    found.write(target)
    print(describe(found, evidence))
    if images:
        print(images)
    print(f"calibration: {target / CALIBRATION_FILE}")


def describe(found: Calibration, evidence: Evidence) -> str:
    """What was fitted, and the calibration error with it and without, over all mentions that it was fitted on."""
    fitted, never = f"temperature {found.temperature:.4g}", None
    if found.nil_score is not None:
        fitted += f", NIL score {found.nil_score:.4g}, NIL threshold {found.nil_threshold:.4g}"
        never = -math.inf  # without a calibration, NIL has no probability
    plain = found.model_copy(update={"temperature": 1.0, "nil_score": never})
    before, after = (calibration_metrics(evidence.at(one.temperature), one, None).ece for one in (plain, found))
    return f"{fitted}\nECE over {found.mentions} mentions: {after:.4f}, of scores as they are {before:.4f}"


if __name__ == "__main__":
    run_command(main)
