"""The released code's numbers as our tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from m3el_fast.features import FeatureDims, Features

# 1e-9 in fp64 (the goldens hold fp64 results of the same formulas in another order of summation); in fp32 what the
# released code itself is off by (4e-5 at scores of 80) with a margin.
TOLERANCE = {torch.float64: {"rtol": 0.0, "atol": 1e-9}, torch.float32: {"rtol": 1e-3, "atol": 1e-4}}
INPUTS = ("text_cls", "text_tokens", "image_cls", "image_tokens")


class Golden:
    """One golden file."""

    def __init__(self, shared: Path, name: str) -> None:
        self.tensors = load_file(shared / "golden" / f"{name}.safetensors")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name[2:]: value.to(dtype) for name, value in self.tensors.items() if name.startswith("w.")}

    def features(self, side: str, dtype: torch.dtype, grad: bool = False) -> Features:
        tensors = [self.tensors[f"in.{side}_{name}"].to(dtype).requires_grad_(grad) for name in INPUTS]
        return Features(*tensors)

    def dims(self) -> FeatureDims:
        return FeatureDims(*(self.tensors[f"in.entity_{name}"].shape[-1] for name in INPUTS))


def close(actual: Tensor | None, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Compare with an fp64 golden value at the tolerance of the dtype that computed ``actual``."""
    assert actual is not None
    tolerance = TOLERANCE[dtype or actual.dtype]
    torch.testing.assert_close(actual.detach().double(), expected.double(), **tolerance)
