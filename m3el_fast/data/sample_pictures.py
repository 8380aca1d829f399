"""The pictures of the sample set: a painted sign (board colour, emblem, emblem colour) in changing weather."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
_SCALE = 2  # drawn larger, then reduced: smooth edges

Colour = tuple[int, int, int]

PAINTS: dict[str, Colour] = {
    "red": (200, 40, 45), "blue": (35, 70, 185), "yellow": (240, 200, 40),
    "green": (35, 130, 60), "white": (240, 238, 230), "black": (35, 32, 38),
}  # fmt: skip
_SKIES: tuple[tuple[Colour, Colour], ...] = (  # top, horizon
    ((110, 170, 230), (205, 228, 245)), ((240, 150, 90), (250, 215, 160)), ((150, 155, 165), (205, 205, 205)),
    ((50, 55, 100), (130, 110, 150)), ((140, 205, 200), (240, 235, 210)),
)  # fmt: skip
_GROUNDS: tuple[Colour, ...] = ((96, 140, 70), (205, 185, 130), (130, 125, 120), (225, 230, 235), (120, 85, 60))
_WOOD = (95, 62, 40)


class Look(NamedTuple):
    """What a sign shows, and what all pictures of one house share."""

    board: str
    emblem: str
    paint: str


def looks() -> list[Look]:
    """Every sign there is, in a fixed order."""
    return [Look(b, emblem, p) for b in PAINTS for emblem in _EMBLEMS for p in PAINTS if p != b]


def draw(look: Look, rng: np.random.Generator) -> Image.Image:
    """One picture, SIZE x SIZE RGB: the sign as ``look`` says; weather, place, tilt, light and noise at random."""
    side = SIZE * _SCALE
    image = _landscape(side, rng)
    pen = ImageDraw.Draw(image)
    x, y = side / 2 + rng.uniform(-0.1, 0.1, 2) * side
    half = side * rng.uniform(0.26, 0.38)
    tilt = math.radians(rng.uniform(-8, 8))

    def at(u: float, v: float) -> tuple[float, float]:
        """From the sign's own axes, -1 to 1, to the picture."""
        cos, sin = half * math.cos(tilt), half * math.sin(tilt)
        return x + u * cos - v * sin, y + u * sin + v * cos

    pen.line([(x, y), (x, side)], fill=_WOOD, width=side // 16)
    pen.polygon([at(*corner) for corner in ((-1.06, -1.06), (1.06, -1.06), (1.06, 1.06), (-1.06, 1.06))], fill=_WOOD)
    pen.polygon(
        [at(*corner) for corner in ((-0.95, -0.95), (0.95, -0.95), (0.95, 0.95), (-0.95, 0.95))],
        fill=PAINTS[look.board],
    )
    for part in _EMBLEMS[look.emblem]:
        pen.polygon([at(u, v) for u, v in part], fill=PAINTS[look.paint])
    pixels = np.asarray(image.reduce(_SCALE), np.float32)
    light = rng.uniform(0.65, 1.15) + rng.uniform(-0.08, 0.08, 3)
    grain = rng.normal(0, 6, pixels.shape).astype(np.float32)
    return Image.fromarray(np.clip(pixels * light.astype(np.float32) + grain, 0, 255).astype(np.uint8))


def _landscape(side: int, rng: np.random.Generator) -> Image.Image:
    top, horizon = (np.array(colour, np.float32) for colour in _SKIES[rng.integers(len(_SKIES))])
    ground = np.array(_GROUNDS[rng.integers(len(_GROUNDS))], np.float32)
    height = int(side * rng.uniform(0.6, 0.85))
    share = np.minimum(np.arange(side, dtype=np.float32) / height, 1)[:, None]
    rows = np.where(np.arange(side)[:, None] < height, top + (horizon - top) * share, ground)
    return Image.fromarray(np.repeat(rows.astype(np.uint8)[:, None], side, axis=1))


def _ring(points: int, inner: float, turn: float = 0.0, radius: float = 0.8) -> list[tuple[float, float]]:
    """A star of ``points`` rays; with ``inner`` = ``radius`` a regular polygon."""
    radii = [radius if i % 2 == 0 else inner for i in range(2 * points)]
    angles = [turn - math.pi / 2 + math.pi * i / points for i in range(2 * points)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _crescent() -> list[tuple[float, float]]:
    outer = [(0.8 * math.cos(a), 0.8 * math.sin(a)) for a in np.linspace(0.9, 2 * math.pi - 0.9, 24)]
    inner = [(0.42 + 0.62 * math.cos(a), 0.62 * math.sin(a)) for a in np.linspace(2 * math.pi - 1.65, 1.65, 24)]
    return outer + inner


_EMBLEMS: dict[str, tuple[list[tuple[float, float]], ...]] = {
    "sun": (_ring(12, 0.52, radius=0.85),),
    "star": (_ring(5, 0.33, radius=0.9),),
    "moon": (_crescent(),),
    "cross": ([(-0.25, -0.8), (0.25, -0.8), (0.25, 0.8), (-0.25, 0.8)],
              [(-0.8, -0.25), (0.8, -0.25), (0.8, 0.25), (-0.8, 0.25)]),
    "boat": ([(-0.8, 0.25), (0.8, 0.25), (0.5, 0.7), (-0.5, 0.7)], [(-0.05, -0.8), (0.6, 0.1), (-0.05, 0.1)],
             [(-0.15, -0.55), (-0.15, 0.1), (-0.6, 0.1)]),
    "fish": ([(0.62 * u - 0.2, 0.45 * v) for u, v in _ring(20, 1.0, radius=1.0)],
             [(0.2, 0.0), (0.85, -0.5), (0.85, 0.5)]),
}  # fmt: skip
