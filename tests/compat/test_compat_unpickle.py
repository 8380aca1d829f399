"""Checkpoints are read without executing what a stranger's pickle asks for."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from m3el_fast.compat.unpickle import Inert, load_pickle, plain
from m3el_fast.errors import InputError


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


class Chained:
    """Calls what a harmless-looking global returns."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return eval, (f"open({self.path!r}, 'w').close()",)


def test_a_malicious_checkpoint_runs_nothing(tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    path = tmp_path / "evil.ckpt"
    content = {"state_dict": {"w": torch.arange(3.0)}, "a": Malicious(f"touch {witness}"), "b": Chained(str(witness))}
    torch.save(content, path)
    # the file is dangerous: torch itself, asked to trust it, runs the command
    torch.load(path, weights_only=False)
    assert witness.exists()
    witness.unlink()

    loaded = load_pickle(path)
    assert not witness.exists()
    assert torch.equal(loaded["state_dict"]["w"], torch.arange(3.0))
    assert isinstance(loaded["a"], Inert)
    assert isinstance(loaded["b"], Inert)


def test_the_legacy_format_is_restricted_too(tmp_path: Path) -> None:
    witness = tmp_path / "executed"
    path = tmp_path / "legacy.pt"
    content = {"w": torch.ones(2), "a": Malicious(f"touch {witness}")}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    loaded = load_pickle(path)
    assert not witness.exists()
    assert torch.equal(loaded["w"], torch.ones(2))


def test_omegaconf_settings_are_read_as_plain_values(tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    settings = {"model": {"weight": 0.5, "heads": [1, "two", None], "name": "clip"}, "run": {"seed": 43}}
    path = tmp_path / "lightning.ckpt"
    torch.save({"hyper_parameters": {"args": omegaconf.OmegaConf.create(settings)}}, path)
    assert plain(load_pickle(path)["hyper_parameters"]) == {"args": settings}


def test_every_dtype_shape_and_sharing_survives(tmp_path: Path) -> None:
    base = torch.arange(12).view(3, 4)
    state = {
        str(dtype): base.to(dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool)
    }
    state |= {"scalar": torch.tensor(2.5), "view": base.T, "parameter": torch.nn.Parameter(torch.ones(2))}
    path = tmp_path / "state.pt"
    torch.save(state, path)
    loaded = load_pickle(path)
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"a": 1})[:-3]], ids=["empty", "text", "cut"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken.ckpt: expected a file that torch.save wrote, got "):
        load_pickle(path)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.ckpt"
    torch.save({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"expected a file that torch\.save wrote"):
        load_pickle(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.ckpt: expected a checkpoint file, got no such file"):
        load_pickle(tmp_path / "none.ckpt")
