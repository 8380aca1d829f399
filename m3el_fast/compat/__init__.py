"""Released checkpoints in, released checkpoints out (spec section 10)."""

from m3el_fast.compat.released import load_released, to_released

__all__ = ["load_released", "to_released"]
