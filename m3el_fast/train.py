"""``python -m m3el_fast.train``: train M3EL or MIMIC, keep the best checkpoint, print its test metrics.

Without arguments it generates the sample data set and trains a small CLIP-M3EL on it from scratch.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from m3el_fast.calibrate import calibrate
from m3el_fast.calibration import Calibration
from m3el_fast.config import RunConfig, preset_names, read_yaml, resolve_preset
from m3el_fast.data.layout import entity_text, mention_text, read_kb, read_mentions
from m3el_fast.data.sample import write_sample
from m3el_fast.data.tokenizer import train_tokenizer
from m3el_fast.dataset import Dataset, load_dataset
from m3el_fast.encoder import Encoder
from m3el_fast.errors import InputError, run_command
from m3el_fast.evaluate import ROW_NAMES
from m3el_fast.evaluate_answers import unanswered
from m3el_fast.files import replace_file, require_file_target
from m3el_fast.frozen import freeze
from m3el_fast.hub_results import data_name
from m3el_fast.metrics import Metrics, table
from m3el_fast.models import CONFIG_FILE, MELModel, build_model, load_model
from m3el_fast.ops.build import native_report
from m3el_fast.scorer import Scorer
from m3el_fast.trainer import (
    ANOTHER_OUTPUT,
    CHECKPOINT,
    Interrupted,
    Trainer,
    distributed_evidence,
    distributed_ranks,
    kb_scorer,
    make_accelerator,
    measured,
)

RESULTS_FILE = "results.json"
EXAMPLES_FILE = "examples.jsonl"
DATA = "data"
UNTRAINED = "untrained"
SAMPLE = "sample"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="m3el train",
        description="Train M3EL or MIMIC. Without arguments: a small M3EL on a generated sample data set.",
    )
    presets = ", ".join(preset_names())
    parser.add_argument("--config", default=SAMPLE, metavar="NAME|FILE", help=f"YAML file or preset: {presets}")
    parser.add_argument("--data", metavar="DIR", help="data set in the MIMIC layout")
    parser.add_argument("--output", metavar="DIR", help="run folder (default: runs/NAME); an unfinished run resumes")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. train.lr=1e-4; repeatable"
    )
    parser.add_argument("--freeze-encoder", action="store_true", help="train the matcher on features encoded once")
    parser.add_argument("--strict-images", action="store_true", help="a missing or unreadable image is an error")
    args = parser.parse_args(argv)

    name = Path(args.config).stem + (f"-{Path(args.data).resolve().name}" if args.data else "")
    output = Path(args.output or Path("runs") / name)
    values = read_yaml(resolve_preset(args.config))
    overrides = dict(map(_key_value, args.set))
    if args.data:
        overrides["data.dir"] = str(Path(args.data).resolve())
    if args.freeze_encoder:
        overrides["train.freeze_encoder"] = True
    if args.strict_images:
        overrides["data.strict_images"] = True
    config = RunConfig.parse(_override(values, overrides), args.config)
    if config.data.dir is None and args.config in preset_names() and args.config != SAMPLE:
        hint = f"Only the preset {SAMPLE} makes its own"
        raise InputError("--data", f"the folder of a data set to train {args.config} on", "none", hint)
    train(config, output)


def train(config: RunConfig, output: Path) -> None:
    """Train to the end (or go on where an earlier call stopped), test the best checkpoint, print and save the table.

    Raises:
        InputError: configuration or data cannot be used, or ``output`` cannot be written or holds a run with another
            configuration.
    """
    started = time.monotonic()
    if output.exists() and not output.is_dir():
        raise InputError(output, "a run folder", "a file")
    generated = config.data.dir is None
    config = _with_data(config, output)
    if (output / RESULTS_FILE).exists():
        if RunConfig.load(output / CHECKPOINT / CONFIG_FILE) != config:
            raise InputError(output, "a run with this configuration", "a finished one with another", ANOTHER_OUTPUT)
        print(f"{output} holds a finished run (remove it, or give another --output, to train again)")
        _show((output / RESULTS_FILE), output)
        return
    require_file_target(output / RESULTS_FILE)
    accelerator = make_accelerator(config.train)
    set_seed(config.train.seed)
    with accelerator.main_process_first():
        assert config.data.dir is not None
        folder = Path(config.data.dir)
        if generated and not folder.exists():
            print(f"generating the sample data set in {output / DATA}")
            write_sample(folder)
        model = make_model(config)
        main = accelerator.is_main_process
        data = load_dataset(config.data, folder, model.encoder, ["train", "dev", "test"], progress=main)
        if config.train.freeze_encoder:
            data = freeze(model.to(accelerator.device), data, output / "features", progress=main)
    accelerator.print(_describe(config, model, data))
    trainer = Trainer(config, model, data, output, accelerator)
    try:
        trainer.fit()
    except Interrupted:
        accelerator.print(f"interrupted; the same command goes on from {output}")
        raise KeyboardInterrupt from None
    _test(config, data, output, accelerator)
    if accelerator.is_main_process:
        _show(output / RESULTS_FILE, output)
        if data.images:
            print(data.images)
        print(f"{time.monotonic() - started:.0f} s in all")
    accelerator.end_training()


def make_model(config: RunConfig) -> MELModel:
    """The model that ``config`` describes before training; ``config.data.dir`` must be set.

    A CLIP from scratch that names no tokenizer gets one trained on the data set's text.
    """
    assert config.data.dir is not None
    return build_model(config, Encoder.create(config.encoder, _tokenizer(config, Path(config.data.dir))))


def _with_data(config: RunConfig, output: Path) -> RunConfig:
    """The configuration with a data folder; where none is named it is that of a generated sample set."""
    if config.data.dir is not None:
        return config
    folder = str((output / DATA).resolve())
    return config.model_copy(update={"data": config.data.model_copy(update={"dir": folder})})


def _tokenizer(config: RunConfig, folder: Path) -> PreTrainedTokenizerBase | None:
    """A tokenizer trained on the data set's text, for a CLIP from scratch that names none."""
    scratch = config.encoder.scratch
    if scratch is None or scratch.tokenizer is not None:
        return None
    kb = read_kb(folder, config.data.entity_text)
    texts = [entity_text(entity, config.data.entity_text) for entity in kb.entities]
    texts += [mention_text(mention) for mention in read_mentions(folder, "train")]
    return train_tokenizer(texts, scratch.vocab_size)


def _describe(config: RunConfig, model: MELModel, data: Dataset) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    splits = "; ".join(f"{name}: {split.describe()}" for name, split in data.splits.items())
    head = f"{type(model).__name__}, {trained / 1e6:.1f} M trained weights; {native_report().summary}"
    return f"{head}\nKB: {len(data.kb)} entities; {splits}"


def _test(config: RunConfig, data: Dataset, output: Path, accelerator: Accelerator) -> None:
    """Rank the test split with the best checkpoint and, for a model from scratch, with its initial weights.

    The checkpoint keeps the full model's metrics, and a calibration fitted to the dev split.
    """
    best = load_model(output / CHECKPOINT).to(accelerator.device)
    test, scorer = data.splits["test"], kb_scorer(accelerator, best, data.entities)
    rows = {ROW_NAMES[name]: Metrics.of(ranks) for name, ranks in distributed_ranks(accelerator, scorer, test).items()}
    best.calibration = _calibration(config, data, scorer, accelerator)
    if config.encoder.scratch is not None:
        set_seed(config.train.seed)
        fresh = make_model(config).to(accelerator.device)
        ranks = distributed_ranks(accelerator, kb_scorer(accelerator, fresh, data.entities), test)
        rows[UNTRAINED] = Metrics.of(ranks["union"])
    if accelerator.is_main_process:
        dev = best.results.splits if best.results else {}
        best.results = measured(config, data, {**dev, "test": rows[ROW_NAMES["union"]]})
        best.save_pretrained(output / CHECKPOINT)
        _write_examples(data, output)
        with replace_file(output / RESULTS_FILE) as temporary:
            record = {name: metrics.record() for name, metrics in rows.items()}
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _write_examples(data: Dataset, output: Path) -> None:
    """Five test mentions as input of the link command; image paths are relative to the file."""
    with replace_file(output / EXAMPLES_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        for mention in data.splits["test"].mentions[:5]:
            record = {"mention": mention.name, "sentence": mention.sentence}
            if mention.image is not None:
                record["image"] = os.path.relpath(mention.image, output)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _calibration(config: RunConfig, data: Dataset, scorer: Scorer, accelerator: Accelerator) -> Calibration:
    assert config.data.dir is not None
    folder = Path(config.data.dir)
    without = unanswered(config.data, folder, scorer.model.encoder, "dev", data.kb.row)
    splits = [data.splits["dev"]] if without is None else [data.splits["dev"], without]
    return calibrate(distributed_evidence(accelerator, scorer, splits), data_name(folder), len(data.kb))


def _show(results: Path, output: Path) -> None:
    record = json.loads(results.read_text(encoding="utf-8"))
    rows = {name: Metrics({int(k): v for k, v in row.pop("hits").items()}, **row) for name, row in record.items()}
    print(f"\ntest split, {next(iter(rows.values())).count} mentions ranked against the whole KB:\n{table(rows)}\n")
    checkpoint = output / CHECKPOINT
    print(f"checkpoint: {checkpoint}")
    print("next: link mentions, one JSON object a line with mention, sentence and image (here five of the test split):")
    print(f"  python -m m3el_fast.link {checkpoint} --input {output / EXAMPLES_FILE} --output links.jsonl -k 3")


def _key_value(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise InputError("--set", "KEY=VALUE, e.g. train.lr=1e-4", text)
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {key}", "a value as in YAML", value) from None


def _override(values: Any, overrides: dict[str, Any]) -> Any:
    """``values`` with dotted keys replaced; what is not a mapping is left for the configuration's own check."""
    for key, value in overrides.items():
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise InputError(f"--set {key}", "a key of the configuration", "a value where a section is needed")
        place[last] = value
    return values


if __name__ == "__main__":
    run_command(main)
