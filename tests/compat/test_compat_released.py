"""Released checkpoints: refusals by name, whole checkpoints, Lightning files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from golden import Golden
from m3el_fast.compat import load_released, to_released
from m3el_fast.config import M3ELConfig
from m3el_fast.errors import InputError
from m3el_fast.features import FeatureDims
from m3el_fast.matching import Matcher, build_matcher

DIMS = FeatureDims(8, 8, 6, 6)


@pytest.fixture
def released(shared: Path) -> dict[str, Tensor]:
    return Golden(shared, "m3el_matcher_small").weights(torch.float32)


def test_the_form_must_be_named(released: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match=r"bidirectional: expected True or False"):
        load_released(released)


def test_a_missing_weight_is_named(released: dict[str, Tensor]) -> None:
    del released["timm.fc_key.bias"]
    with pytest.raises(InputError, match=r"1 missing: timm.fc_key.bias"):
        load_released(released, True)


def test_an_unknown_weight_is_named(released: dict[str, Tensor]) -> None:
    released["timm.fc_surprise.bias"] = torch.ones(1)
    with pytest.raises(InputError, match=r"1 unknown: timm.fc_surprise.bias"):
        load_released(released, True)


def test_a_wrong_shape_is_named(released: dict[str, Tensor]) -> None:
    released["timm.fc_key.bias"] = torch.ones(5)
    with pytest.raises(InputError, match=r"text.key.bias: expected shape \(12,\), got \(5,\)"):
        load_released(released, True)


def test_a_matcher_of_ours_has_no_released_form() -> None:
    with pytest.raises(ValueError, match=r"load_released"):
        to_released(build_matcher(M3ELConfig(d=4), DIMS))


@pytest.mark.parametrize("kind", ["lightning", "bare", "safetensors"])
def test_files(released: dict[str, Tensor], tmp_path: Path, kind: str) -> None:
    if kind == "safetensors":
        path = tmp_path / "matcher.safetensors"
        save_file(released, path)
    else:
        path = tmp_path / "matcher.ckpt"
        torch.save({"state_dict": released} if kind == "lightning" else released, path)
    loaded, direct = load_released(path, True), load_released(released, True)
    assert isinstance(loaded, Matcher) and isinstance(direct, Matcher)
    for name, value in direct.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_lightning_settings_reach_the_model(released: dict[str, Tensor], tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    path = tmp_path / "last.ckpt"
    settings = omegaconf.OmegaConf.create({"model": {"weight": 0.25, "loss_temperature": 0.5}})
    torch.save({"state_dict": released, "hyper_parameters": {"args": settings}}, path)
    matcher = load_released(path, True)
    assert isinstance(matcher, Matcher)
    assert matcher.cross is not None
    assert matcher.cross.lam == 0.25


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=r"odd.ckpt: expected a state dict or a Lightning checkpoint, got dict"):
        load_released(tmp_path / "odd.ckpt")
