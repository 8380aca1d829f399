"""Image normalisation: reading a model's, and writing ours in the same format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ImageProcessingMixin

from m3el_fast.encoder.hub import fetch
from m3el_fast.errors import InputError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Normalise(nn.Module):
    """uint8 RGB [u, S, S, 3] -> (x / 255 - mean) / std as [u, 3, S, S] in the model's floating dtype."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.exact = list(mean), list(std)  # the buffers round
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.permute(0, 3, 1, 2).to(self.mean.dtype) / 255 - self.mean) / self.std

    def processor(self, size: int) -> dict[str, Any]:
        """Content of ``preprocessor_config.json``: what this package does to an image (spec section 1)."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": 1,  # Lanczos
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.exact[0],
            "image_std": self.exact[1],
        }


def load_normalise(where: str, name: str) -> Normalise:
    """Mean and standard deviation from the image processor's file of a folder or hub name.

    The file alone is read: building the processor needs torchvision for some models.

    Raises:
        InputError: no such file, or without three means and three deviations.
    """
    processor, _ = fetch(
        where,
        "preprocessor_config.json",
        name,
        lambda local: ImageProcessingMixin.get_image_processor_dict(name, local_files_only=local),
    )
    mean, std = (_rgb(processor.get(key)) for key in ("image_mean", "image_std"))
    if mean is None or std is None or 0 in std:
        got = f"{processor.get('image_mean')} and {processor.get('image_std')}"
        raise InputError(
            f"{where}, {name}, preprocessor_config.json", "image_mean and image_std, three numbers each", got
        )
    return Normalise(mean, std)


def _rgb(values: object) -> tuple[float, ...] | None:
    if (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(value, int | float) for value in values)
    ):
        return tuple(values)
    return None
