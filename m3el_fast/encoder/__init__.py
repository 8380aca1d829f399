"""Text and vision towers with their projections (spec section 1)."""

from m3el_fast.encoder.encoder import Encoder

__all__ = ["Encoder"]
