"""The drop-in losses against the released ones' values and gradients."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from golden import Golden, close
from m3el_fast.compat import InfoNCELoss, MCLETLoss, WeightedContrastiveLoss

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


def check(golden: Golden, loss: nn.Module, prefix: str, inputs: tuple[str, str], out: str, dtype: torch.dtype) -> None:
    pair = [golden[f"{prefix}.{name}"].to(dtype).requires_grad_() for name in inputs]
    value = loss(*pair)
    assert value.dtype == dtype
    close(value, golden[f"{out}.loss64"])
    for name, gradient in zip(inputs, torch.autograd.grad(value, pair), strict=True):
        close(gradient, golden[f"{out}.grad_{name}64"])


@DTYPES
@pytest.mark.parametrize("size", ["n6d16", "n64d512"])
def test_weighted_and_infonce(shared: Path, size: str, dtype: torch.dtype) -> None:
    golden = Golden(shared, "losses")
    check(golden, WeightedContrastiveLoss(), f"wcl.{size}", ("entity", "mention"), f"wcl.{size}", dtype)
    check(golden, InfoNCELoss(), f"infonce.{size}", ("image_emb", "text_emb"), f"infonce.{size}", dtype)


@DTYPES
@pytest.mark.parametrize("tau", [0.6, 0.05])
@pytest.mark.parametrize("size", ["n6d16", "n64d96"])
def test_mclet(shared: Path, size: str, tau: float, dtype: torch.dtype) -> None:
    golden = Golden(shared, "losses")
    loss = MCLETLoss(golden[f"mclet.{size}.A"].shape[1], tau).to(dtype)
    prefix = f"mclet.{size}.w."
    state = {name.removeprefix(prefix): v for name, v in golden.tensors.items() if name.startswith(prefix)}
    loss.load_state_dict(state, strict=True)
    check(golden, loss, f"mclet.{size}", ("A", "B"), f"mclet.{size}.tau{tau}", dtype)


def test_settings_reach_the_loss() -> None:
    torch.manual_seed(0)
    pair = torch.randn(2, 5, 8, dtype=torch.float64)
    e, m = nn.functional.normalize(pair, dim=-1)
    tau, other, same = 0.5, 0.7, 0.3
    expected = torch.zeros((), dtype=torch.float64)
    for own, far in ((e, m), (m, e)):
        logits = torch.cat([other * own @ far.T / tau, (same * own @ own.T / tau).fill_diagonal_(0)], dim=1)
        expected += nn.functional.cross_entropy(logits, torch.arange(5)) / 2
    torch.testing.assert_close(WeightedContrastiveLoss(tau, other, same)(*pair), expected)


def test_signatures() -> None:
    def defaults(loss: type[nn.Module]) -> dict[str, object]:
        return {name: parameter.default for name, parameter in inspect.signature(loss).parameters.items()}

    weighted = {"temperature": 0.03, "inter_weight": 1.0, "intra_weight": 0.8, "logger": None}
    assert defaults(WeightedContrastiveLoss) == weighted
    assert defaults(InfoNCELoss) == {"T_init": 0.07, "kwargs": inspect.Parameter.empty}
    assert defaults(MCLETLoss) == {"embedding_dim": inspect.Parameter.empty, "cl_temperature": 0.05}
    assert WeightedContrastiveLoss().state_dict().keys() == {"logit_scale"}
    assert not InfoNCELoss(T_init=0.5, other=1).state_dict()


def test_an_empty_batch_is_refused() -> None:
    for loss in (WeightedContrastiveLoss(), InfoNCELoss(), MCLETLoss(4)):
        with pytest.raises(ValueError, match="at least one row"):
            loss(torch.empty(0, 4), torch.empty(0, 4))
