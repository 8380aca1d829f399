"""What tests of the reranking adapters share: queries, documents, and their scores by the matcher's full matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from m3el_fast.data.images import decode_image
from m3el_fast.features import Inputs
from m3el_fast.models import MELModel

NEAR = {"rel": 1e-5, "abs": 1e-5}  # fp32 sums in products of other shapes; scores are about 7


def write_pictures(folder: Path) -> Path:
    """Four colours, red twice under two names."""
    for name, colour in (("red", "red"), ("green", "green"), ("blue", "blue"), ("twin", "red")):
        Image.new("RGB", (20, 16), colour).save(folder / f"{name}.png")
    return folder


def queries(folder: Path) -> list[Any]:
    """With all kinds of text and picture; the first and the last are equal."""
    return [
        {"text": "We saw the inn number 0", "mention": "Elm", "image": folder / "red.png"},
        "Elm mill [SEP] a mill by the water",
        {"text": "We saw the inn number 0", "image": str(folder / "blue.png")},
        {"mention": "Elm  mill", "text": "", "image": None},
        {"image": Image.new("RGB", (9, 9), "green")},
        {"text": "We saw the inn number 0", "mention": "Elm", "image": folder / "twin.png"},
    ]


def documents(folder: Path) -> list[Any]:
    """The first two are equal in text, the second and the third in picture, the last is equal to the first."""
    return [
        {"text": "Known for inn 0", "name": "Elm inn", "image": folder / "red.png"},
        {"text": "Known for inn 0", "name": "Elm inn"},
        "Elm school",
        {"text": "Elm mill", "image": (folder / "green.png").read_bytes()},
        Image.new("RGB", (20, 16), "blue"),
        {"text": "Known for inn 0", "name": "Elm inn", "image": folder / "twin.png"},
    ]


QUERY_TEXTS = [
    "Elm [SEP] We saw the inn number 0",
    "Elm mill [SEP] a mill by the water",
    "We saw the inn number 0",
    "Elm mill [SEP] ",
    "",
    "Elm [SEP] We saw the inn number 0",
]
QUERY_COLOURS = ["red", None, "blue", None, "green", "red"]
DOCUMENT_TEXTS = [
    "Elm inn [SEP] Known for inn 0",
    "Elm inn [SEP] Known for inn 0",
    "Elm school",
    "Elm mill",
    "",
    "Elm inn [SEP] Known for inn 0",
]
DOCUMENT_COLOURS = ["red", None, None, "green", "blue", "red"]


def full_matrix(model: MELModel, folder: Path) -> Tensor:
    """Union scores [6, 6] of the queries and documents above, by the matcher's forward."""
    with torch.inference_mode():
        mentions = model.features(_inputs(model, folder, QUERY_TEXTS, QUERY_COLOURS))
        entities = model.features(_inputs(model, folder, DOCUMENT_TEXTS, DOCUMENT_COLOURS))
        union: Tensor = model.matcher(entities, mentions).union
    return union


def _inputs(model: MELModel, folder: Path, texts: list[str], colours: list[str | None]) -> Inputs:
    there = [colour for colour in colours if colour is not None]
    size = model.encoder.image_size
    pixels = [torch.tensor(decode_image((folder / f"{colour}.png").read_bytes(), size)) for colour in there]
    index = torch.tensor([colour is not None for colour in colours])
    return Inputs(*model.encoder.tokenize(texts), torch.stack(pixels), (index.cumsum(0) - 1).masked_fill(~index, -1))
