"""Packed towers give what the towers that they were made from give, whatever the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from encoder_folders import LT, PAIRS, TEXTS, WHOLE
from m3el_fast.config import EncoderConfig
from m3el_fast.encoder import Encoder, packed
from m3el_fast.encoder.packed import pack, share
from m3el_fast.encoder.towers import Towers

ALL = [*WHOLE, *PAIRS]
# Norm of the error over the norm of an output. fp32: sums in another order. bf16: operands of products are rounded to
# 8 bits (2^-9 = 0.2% each), two layers deep, with weights ten times those of a real checkpoint: 0.3 to 1.4% measured.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 0.02}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    """One of every architecture, in training mode."""
    root, made = tmp_path_factory.mktemp("models"), {}
    for name, make in WHOLE.items():
        made[name] = encoder(pretrained=str(make(root / name)))
    for name, (text, vision) in PAIRS.items():
        made[name] = encoder(text=str(text(root / name / "text")), vision=str(vision(root / name / "vision")))
    return made


def encoder(**source: str) -> Encoder:
    return Encoder.create(EncoderConfig.parse({"max_text_tokens": LT, "dv": 10, **source}, "test"))


def pixels(size: int) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def outputs(towers: Towers, encoder: Encoder) -> list[Tensor]:
    """Text global and local, image global and local, of texts of every length and three images."""
    return [*towers.text(*encoder.tokenize(TEXTS)), *towers.image(pixels(encoder.image_size))]


def assert_close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        error = float((one - other).norm() / other.norm())
        assert error < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("name", ALL)
def test_every_architecture(encoders: dict[str, Encoder], name: str, dtype: torch.dtype) -> None:
    encoder = encoders[name]
    encoder.train()
    found = outputs(pack(encoder.model, dtype), encoder)
    assert encoder.model.training
    expected = outputs(encoder.eval().model, encoder)
    assert_close(found, expected, dtype)
    assert (dtype == torch.float32) or not torch.equal(found[1], expected[1])


@pytest.mark.parametrize("name", ALL)
def test_all_layers_are_packed_and_other_weights_shared(encoders: dict[str, Encoder], name: str) -> None:
    towers = encoders[name].model
    copied = pack(towers, torch.bfloat16)
    for tower in (copied.text_model, copied.vision_model):
        layers = [module for module in tower.modules() if isinstance(module, nn.ModuleList)]
        assert layers
        assert not [part for layer in layers for part in layer.modules() if type(part) is nn.Linear]
        assert not [part for part in tower.modules() if isinstance(part, nn.Conv2d)]
    own = {id(parameter) for parameter in towers.parameters()}
    assert {id(parameter) for parameter in copied.parameters()} < own


def test_a_shared_copy_drops_nothing_out(encoders: dict[str, Encoder]) -> None:
    encoder = encoders["bert+vit"]
    expected = outputs(encoder.eval().model, encoder)
    encoder.train()
    copied = share(encoder.model)
    assert all(torch.equal(a, b) for a, b in zip(outputs(copied, encoder), expected, strict=True))
    assert not torch.equal(outputs(encoder.model, encoder)[1], expected[1])
    own = [id(tensor) for tensor in encoder.model.state_dict(keep_vars=True).values()]
    assert [id(tensor) for tensor in copied.state_dict(keep_vars=True).values()] == own


def test_only_the_copy_attends_differently(encoders: dict[str, Encoder], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoders["clip"].eval()
    expected = outputs(encoder.model, encoder)
    copied = pack(encoder.model, torch.float32)
    monkeypatch.setattr(packed.torch, "bmm", lambda *tensors: pytest.fail("bmm"))
    with pytest.raises(pytest.fail.Exception, match="bmm"):
        outputs(copied, encoder)
    assert all(torch.equal(a, b) for a, b in zip(outputs(encoder.model, encoder), expected, strict=True))


@DTYPES
@pytest.mark.parametrize("name", ["clip", "siglip", "bert+vit"])
def test_many_tokens_go_through_the_blocked_kernel(
    encoders: dict[str, Encoder], name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoders[name].eval()
    copied = pack(encoder.model, dtype)
    real, calls = packed.sdpa_attention_forward, []

    def counting(*tensors: Any, **options: Any) -> Any:
        calls.append(options)
        return real(*tensors, **options)

    monkeypatch.setattr(packed, "sdpa_attention_forward", counting)
    expected = outputs(encoder.model, encoder)
    assert_close(outputs(copied, encoder), expected, dtype)
    assert not calls
    monkeypatch.setattr(packed, "_SHORT", 1)
    assert_close(outputs(copied, encoder), expected, dtype)
    assert len(calls) == 4  # two towers of two layers


@pytest.mark.parametrize("name", ["clip", "siglip", "bert+vit"])
def test_texts_without_padding(encoders: dict[str, Encoder], name: str) -> None:
    """transformers then gives no mask and leaves a causal one to the attention."""
    encoder = encoders[name].eval()
    ids = encoder.tokenize([TEXTS[3]] * 2)[0]
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        found = list(pack(encoder.model, torch.float32).text(ids, mask))
        assert_close(found, list(encoder.model.text(ids, mask)), torch.float32)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_configured_attention(tmp_path: Path, attention: str) -> None:
    encoder = Encoder.create(
        EncoderConfig.parse(
            {"pretrained": str(WHOLE["clip"](tmp_path / "clip")), "max_text_tokens": LT, "attention": attention}, "test"
        )
    ).eval()
    for dtype in TOLERANCE:
        assert_close(outputs(pack(encoder.model, dtype), encoder), outputs(encoder.model, encoder), dtype)


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_images_that_patches_do_not_divide(bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 7, (5, 4), (5, 4), bias=bias)
    images = torch.randn(2, 3, 19, 22).permute(0, 1, 3, 2)
    with torch.inference_mode():
        found = packed._Patches(convolution, dtype)(images)
        assert_close([found], [convolution(images)], dtype)


@DTYPES
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh", "relu"])
def test_activations(activation: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mlp = nn.Module()
    mlp.fc1, mlp.fc2, mlp.activation_fn = nn.Linear(33, 70), nn.Linear(70, 33), ACT2FN[activation]
    x = 4 * torch.randn(2, 9, 33)
    with torch.inference_mode():
        expected = mlp.fc2(mlp.activation_fn(mlp.fc1(x)))
        made = packed._MLP(mlp, dtype, widen=True)
        assert_close([made(x)], [expected], dtype)
    assert isinstance(made.activation, nn.Identity) == (activation != "relu")
