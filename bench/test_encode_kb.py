"""Encoding a KB with CLIP ViT-B/32's towers (random weights) and M3EL's matcher, against ``torch.matmul`` in bf16."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bench.machine import matmul_rate
from bench.measure import Measure
from bench.memory import peak_memory
from bench.scales import SCALES, Scale
from m3el_fast.config import RunConfig
from m3el_fast.data.tokenizer import train_tokenizer
from m3el_fast.encode import KBEncoder
from m3el_fast.encoder import Encoder
from m3el_fast.features import Images, Inputs, Texts, Vectors
from m3el_fast.models import MELModel, build_model

SHARE = "share of limit"  # the limit: torch.matmul in bf16 at 4096 x 4096 x 4096, in this process
IMAGES_PER_ENTITY = 0.61  # WikiMEL


@dataclass(frozen=True)
class Sizes:
    """Towers and how much goes through them: ``entities`` distinct texts, ``IMAGES_PER_ENTITY`` images for each."""

    text_width: int
    vision_width: int
    layers: int
    image_size: int
    patch_size: int
    tokens: int
    entities: int
    matmul: int

    @property
    def images(self) -> int:
        return round(IMAGES_PER_ENTITY * self.entities)

    def text_flop(self) -> int:
        """Matrix products of the text tower for one text."""
        return self._layers(self.text_width, self.tokens)

    def image_flop(self) -> int:
        """Matrix products of the vision tower for one image."""
        patches = (self.image_size // self.patch_size) ** 2
        embedding = 2 * patches * 3 * self.patch_size**2 * self.vision_width
        return self._layers(self.vision_width, patches + 1) + embedding

    def text_bytes(self) -> int:
        """The text tower's weights, in bf16; token ids are nothing beside them."""
        return 2 * 12 * self.layers * self.text_width**2

    def image_bytes(self) -> int:
        """The vision tower's weights, in bf16, and all pixels."""
        return 2 * 12 * self.layers * self.vision_width**2 + self.images * 3 * self.image_size**2

    def _layers(self, width: int, tokens: int) -> int:
        return self.layers * (24 * tokens * width**2 + 4 * tokens**2 * width)


VIT_B_32 = Sizes(512, 768, 12, 224, 32, 40, entities=192, matmul=4096)
TINY = Sizes(64, 64, 2, 64, 32, 40, entities=20, matmul=64)


class RandomKB:
    """A source of random texts of 8 to 40 tokens and random pixels; every entity has a text of its own."""

    def __init__(self, sizes: Sizes) -> None:
        g = torch.Generator().manual_seed(7)
        n, u, side = sizes.entities, sizes.images, sizes.image_size
        self.text_key = torch.arange(n)
        self.image_key = torch.arange(n).where(torch.arange(n) < u, -1)
        lengths = torch.randint(8, sizes.tokens + 1, (n, 1), generator=g)
        self._mask = (torch.arange(sizes.tokens) < lengths).long()
        self._ids = torch.randint(5, 50, self._mask.shape, generator=g)
        self._pixels = torch.randint(0, 256, (u, side, side, 3), dtype=torch.uint8, generator=g)

    def __len__(self) -> int:
        return len(self.text_key)

    def texts(self, rows: Tensor) -> Texts:
        return Texts(self._ids[rows], self._mask[rows])

    def images(self, keys: Tensor) -> Images:
        there = keys >= 0
        return Images(self._pixels[keys[there]], (there.cumsum(0) - 1).masked_fill(~there, -1))

    def inputs(self, rows: Tensor, share: Tensor | None = None) -> Inputs:
        return Inputs(*self.texts(rows), *self.images(self.image_key[rows]))


@pytest.fixture(scope="module")
def sizes(scale: Scale) -> Sizes:
    return TINY if scale is SCALES["tiny"] else VIT_B_32


@pytest.fixture(scope="module")
def model(sizes: Sizes) -> MELModel:
    scratch = {name: getattr(sizes, name) for name in ("text_width", "vision_width", "image_size", "patch_size")}
    scratch |= {f"{tower}_layers": sizes.layers for tower in ("text", "vision")}
    scratch |= {"text_heads": sizes.text_width // 64, "vision_heads": sizes.vision_width // 64}
    encoder = {"scratch": scratch | {"projection_dim": sizes.text_width}, "max_text_tokens": sizes.tokens}
    config = RunConfig.parse({"encoder": encoder}, "bench")
    words = train_tokenizer([f"word {i} and other words" for i in range(200)], 400)
    torch.manual_seed(3)
    return build_model(config, Encoder.create(config.encoder, words)).eval()


@pytest.fixture(scope="module")
def source(sizes: Sizes) -> RandomKB:
    return RandomKB(sizes)


class Encoding:
    """All images of a source, then all items."""

    def __init__(self, model: MELModel, source: RandomKB) -> None:
        self._encoder = KBEncoder(model, source, precision="bf16")
        self.keys, self._image_of = source.image_key.unique(return_inverse=True)
        self._rows = torch.arange(len(source))

    def images(self) -> Vectors:
        pieces = list(self._encoder.images(self.keys))
        self._context = {name: torch.cat([context[name] for *_, context in pieces]) for name in pieces[0][2]}
        return {name: torch.cat([visual[name] for _, visual, _ in pieces]) for name in pieces[0][1]}

    def items(self) -> Vectors:
        def context(places: Tensor) -> Vectors:
            return {name: tensor[places] for name, tensor in self._context.items()}

        pieces = list(self._encoder.items(self._rows, self._image_of, context))
        return {name: torch.cat([item[name] for _, item in pieces]) for name in pieces[0][1]}


@pytest.fixture(scope="module")
def encoding(model: MELModel, source: RandomKB) -> Encoding:
    """Checked against the fp32 entity side of the first few; 1% is twice what bf16 towers cost."""
    encoding = Encoding(model, source)
    few = torch.arange(6)
    with torch.inference_mode():
        side = model.entity_side(source.inputs(few))
    visual, item = encoding.images(), encoding.items()
    places = torch.searchsorted(encoding.keys, source.image_key[few])
    for name, value in side.item.items():
        assert (item[name][few] - value).norm() < 0.01 * value.norm(), name
    for name, value in side.visual.items():
        assert (visual[name][places] - value[side.image_index]).norm() < 0.01 * value.norm(), name
    return encoding


@pytest.fixture(scope="module")
def matmul(sizes: Sizes) -> float:
    """FLOP a second of ``torch.matmul`` in bf16 with all threads, the yardstick of the bar."""
    return matmul_rate(torch.bfloat16, sizes.matmul)


@pytest.mark.parametrize("kind", ["images", "texts", "entities"])
def test_encode(
    kind: str, sizes: Sizes, source: RandomKB, encoding: Encoding, measure: Measure, scale: Scale, matmul: float
) -> None:
    def entities() -> None:
        encoding.images()
        encoding.items()

    images, texts = len(encoding.keys), len(source)
    of_images, of_texts = images * sizes.image_flop(), texts * sizes.text_flop()
    call, items, flop, moved = {
        "images": (encoding.images, images, of_images, sizes.image_bytes()),
        "texts": (encoding.items, texts, of_texts, sizes.text_bytes()),
        "entities": (entities, texts, of_images + of_texts, sizes.image_bytes() + sizes.text_bytes()),
    }[kind]
    measure.time(call, scale.rounds)
    measure.record(
        f"encoding {kind}",
        items=items,
        unit=kind,
        limit=flop / items / matmul,
        bars={SHARE: 0.6} if kind == "entities" else {},
        peak=peak_memory(call),
        flop=flop / items,
        moved=moved / items,
        gflop_each=flop / items / 1e9,
        matmul_gflops=matmul / 1e9,
    )
