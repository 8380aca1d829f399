"""What a client may ask for."""

from __future__ import annotations

from dataclasses import dataclass

MENTIONS = 64
"""Mentions in a request, and those linked at a time."""

NAME, SENTENCE, IDENTITY = 1_000, 10_000, 1_000
"""Characters of a mention, of its sentence and of an entity's id."""

K, CANDIDATES = 100, 1_000
"""Links of a mention; candidates of a mention, by number or by id."""

HEAD = 65_536
"""Bytes of a request's header fields."""


@dataclass(frozen=True)
class Limits:
    """What the machine decides.

    Attributes:
        body: bytes of a request; image: of a picture in it; pixels: of that picture.
        seconds: a request may take, from its first byte to its answer.
        requests: in hand at a time, those that are still being read among them; further ones are refused.
    """

    body: int = 12_000_000
    image: int = 8_000_000
    pixels: int = 50_000_000
    seconds: float = 30.0
    requests: int = 64
