"""Copies from host memory to a GPU, behind the back of what runs there."""

from __future__ import annotations

import torch
from torch import Tensor

from m3el_fast.features import Vectors


def host_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory to fill and then to copy to ``device``: pinned for a GPU.

    It may be dropped as soon as a copy was started: PyTorch keeps pinned memory until copies from it have ended.
    """
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


class Upload:
    """Tensors on their way to ``device``, on a CUDA ``stream`` of their own; None = copied at once.

    Args:
        parts: of :func:`host_memory`.
    """

    def __init__(self, parts: list[Vectors], device: torch.device, stream: torch.cuda.Stream | None) -> None:
        with torch.cuda.stream(stream):  # None changes nothing
            self._parts = [{n: t.to(device, non_blocking=True) for n, t in part.items()} for part in parts]
        self._device, self._done = device, None if stream is None else stream.record_event()

    def arrive(self) -> list[Vectors]:
        """The tensors on the device, for the stream that is current."""
        if self._done is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(self._done)
            for part in self._parts:
                for tensor in part.values():
                    tensor.record_stream(current)
        return self._parts
