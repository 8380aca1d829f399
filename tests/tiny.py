"""A data set of a dozen entities and a model of a few thousand weights: what tests of the pipeline run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from m3el_fast.config import RunConfig
from m3el_fast.data.tokenizer import train_tokenizer
from m3el_fast.encoder import Encoder
from m3el_fast.features import Inputs
from m3el_fast.models import MELModel, build_model

COLOURS = ["red", "green", "blue", "white"]
KINDS = ["inn", "school", "mill"]


def write_tiny(folder: Path, mentions: int = 24) -> Path:
    """Three kinds x four colours of entity; entities 10 and 11 have no image, 8 and 9 are identical but for the qid."""
    for name in ("kb_image", "mention_image"):
        (folder / name).mkdir(parents=True)
    for colour in COLOURS:
        for name in ("kb_image", "mention_image"):
            Image.new("RGB", (20, 16), colour).save(folder / name / f"{colour}.jpg")
    entities = []
    for i in range(12):
        kind, colour = KINDS[i // 4], COLOURS[i % 4]
        entity = {
            "id": i,
            "type": "entity",
            "qid": f"Q{i}",
            "entity_name": f"Elm {kind}",
            "attr": f"Known for {kind} {i % 4}",
        }
        entities.append(entity | {"desc": f"A {colour} {kind}", "image_list": [f"{colour}.jpg"] if i < 10 else []})
    entities[9] = entities[8] | {"id": 9, "qid": "Q9"}
    (folder / "kb_entity.json").write_text(json.dumps(entities))
    (folder / "qid2id.json").write_text(json.dumps({e["qid"]: e["id"] for e in entities}))
    for split in ("train", "dev", "test"):
        records: list[dict[str, Any]] = []
        for i in range(mentions):
            gold = i % 12
            record = {
                "id": f"{split}-{i}",
                "sentence": f"We saw the {KINDS[gold // 4]} number {gold % 4}",
                "mentions": "Elm",
            }
            image = f"{COLOURS[gold % 4]}.jpg" if i % 5 else ""
            records.append(record | {"imgPath": image, "entities": "Elm", "answer": f"Q{gold}"})
        records.append(records[0] | {"id": f"{split}-nil", "answer": "nil"})
        records.append(records[0] | {"id": f"{split}-absent", "answer": "Q999"})
        (folder / f"TINY_{split}.json").write_text(json.dumps(records))
    return folder


def tiny_config(data: Path, model: dict[str, Any] | None = None, **train: Any) -> RunConfig:
    """A config whose whole training takes a second."""
    scratch = {"vocab_size": 300, "text_width": 16, "text_layers": 1, "text_heads": 2, "projection_dim": 16}
    scratch |= {"vision_width": 16, "vision_layers": 1, "vision_heads": 2, "image_size": 16, "patch_size": 8}
    settings = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "eps": 1e-8, "eval_every": 1, "seed": 5} | train
    values = {
        "model": {"type": "m3el", "d": 8} | (model or {}),
        "encoder": {"scratch": scratch, "max_text_tokens": 12, "dv": 8},
        "data": {"dir": str(data)},
        "train": settings,
    }
    return RunConfig.parse(values, "tiny")


def tiny_model(config: RunConfig, seed: int = 1) -> MELModel:
    """The model of a configuration with a scratch encoder, without a data set."""
    torch.manual_seed(seed)
    words = train_tokenizer([f"Elm {kind} in a {colour} house" for kind in KINDS for colour in COLOURS], 300)
    return build_model(config, Encoder.create(config.encoder, words))


def tiny_inputs(encoder: Encoder, count: int, seed: int) -> Inputs:
    """``count`` items of different texts and images, the last one without an image."""
    generator = torch.Generator().manual_seed(seed)
    ids, mask = encoder.tokenize([f"{COLOURS[i % 4]} {KINDS[i % 3]} " + "elm " * (i + seed) for i in range(count)])
    size = encoder.image_size
    pixels = torch.randint(0, 256, (count - 1, size, size, 3), dtype=torch.uint8, generator=generator)
    return Inputs(ids, mask, pixels, torch.arange(count) % (count - 1) - (torch.arange(count) == count - 1).long())
