"""How close the results of Triton's kernels are to the reference's."""

from __future__ import annotations

from torch import Tensor


def close(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Each element within ``tolerance`` of the largest one expected."""
    assert found.shape == expected.shape
    limit = tolerance * max(1e-3, float(expected.abs().max()))
    error = float((found.double() - expected).abs().max())
    assert error <= limit, f"{name}: error {error:.3g}, at most {limit:.3g}"
