"""Tensors out of a stranger's pickle, without running any of it.

Only the few globals that rebuild tensors and plain containers are resolved. Every other global becomes an inert
placeholder class: its instances keep what they are given and do nothing, whatever the pickle asks of them.
"""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils

from m3el_fast.errors import InputError

_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}
_ALLOWED |= {("builtins", t.__name__): t for t in (dict, list, tuple, set, frozenset, int, float, str, bool)}
# what Python 2 protocol pickles call builtins
_ALLOWED |= {("__builtin__", name): value for (module, name), value in _ALLOWED.items() if module == "builtins"}


class Inert:
    """Stands for an object of a class that is not resolved; keeps ``state`` and ignores everything else."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert()

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name)) or type(name, (Inert,), {})


def _load(file: Any, **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


def load_pickle(path: Path) -> Any:
    """The object that ``torch.save`` wrote to ``path``, with placeholders for all that is neither tensor nor container.

    Raises:
        InputError: no such file, or not a file of ``torch.save``.
    """
    if not path.is_file():
        raise InputError(path, "a checkpoint file", "no such file")
    module = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="m3el_fast.compat.unpickle")
    try:
        return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError) as error:
        # what a truncated or foreign file makes torch and pickle raise
        raise InputError(path, "a file that torch.save wrote", f"{type(error).__name__}: {error}") from None


def plain(value: Any) -> Any:
    """Plain values out of placeholders for OmegaConf's DictConfig, ListConfig and value nodes; others become None."""
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, dict) else {}
        return plain(state["_content"] if "_content" in state else state.get("_val"))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
