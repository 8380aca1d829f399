"""Weights in safetensors files, and what does not fit a model, by name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from m3el_fast.errors import InputError


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises :class:`InputError` where it is damaged or something else."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(path, "a safetensors file", str(error)) from None


def load_state(module: nn.Module, state: dict[str, Tensor], where: str | Path) -> None:
    """Load a state dict strictly; an :class:`InputError` names what is missing, unknown or of another shape."""
    own = module.state_dict()
    refuse_names(set(own) - set(state), set(state) - set(own), where)
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise InputError(f"{where}, {name}", f"shape {tuple(own[name].shape)}", tuple(tensor.shape))
    module.load_state_dict(state)


def refuse_names(missing: Collection[str], unknown: Collection[str], where: str | Path) -> None:
    """An :class:`InputError` that lists weights where there are any missing or unknown ones."""
    for names, problem in ((missing, "missing"), (unknown, "unknown")):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            raise InputError(where, "the weights of this model", f"{len(names)} {problem}: {listed}")
