"""Spec section 1 in numbers: the golden CLIP, scratch encoders, images and texts at their edges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from encoder_folders import LT, SENTENCE, TEXTS, clip, clip_tokenizer, save, tokenizer
from golden import Golden, close
from m3el_fast.config import EncoderConfig, ScratchCLIP
from m3el_fast.encoder import Encoder
from m3el_fast.features import Inputs, TowerOutputs

SMALL = ScratchCLIP(
    text_width=32, text_heads=2, vision_width=24, vision_heads=3, patch_size=16, image_size=32, projection_dim=20
)
NAMES = {"clip.": "model.", "image_cls_fc.": "image_global_proj.", "image_tokens_fc.": "image_local_proj."}


def scratch(tokens: PreTrainedTokenizerFast | None = None, **changes: object) -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(**{"scratch": SMALL, "max_text_tokens": LT, "dv": 10, **changes})
    return Encoder.create(config, tokens or clip_tokenizer()).eval()


def pictures(count: int, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


# -- the released code's encoder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_golden_clip(dtype: torch.dtype, shared: Path, tmp_path: Path) -> None:
    golden = Golden(shared, "clip_encoder_tiny")
    words = [*SENTENCE.split(), *(f"w{i}" for i in range(1000))][:998]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 998, "eos_token_id": 999, "pad_token_id": 999}
    config = CLIPConfig(
        text_config={**sizes, **ids, "vocab_size": 1000, "max_position_embeddings": 20},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    save(tmp_path, CLIPModel(config), tokenizer("<start>", "<end>", "<end>", (*words, "<start>", "<end>")))
    encoder = Encoder.create(EncoderConfig(pretrained=str(tmp_path), max_text_tokens=12, dv=16)).eval().to(dtype)
    ours = {}
    for name, value in golden.weights(dtype).items():
        prefix = next(prefix for prefix in NAMES if name.startswith(prefix))
        ours[NAMES[prefix] + name.removeprefix(prefix)] = value
    encoder.load_state_dict(ours)

    ids_, mask = golden["in.input_ids"], golden["in.attention_mask"]
    text, image = encoder.model.text(ids_, mask), encoder.model.image(golden["in.pixel_values"].to(dtype))
    features = encoder.project(TowerOutputs(*text, *image, torch.arange(4), mask))
    close(features.text_global, golden["out64.text_cls"], dtype)
    close(features.text_local, golden["out64.text_tokens"], dtype)
    close(features.image_global, golden["out64.image_cls"], dtype)
    close(features.image_local, golden["out64.image_tokens"], dtype)
    assert features.image_index is not None
    assert features.image_index.tolist() == [0, 1, 2, 3]


def test_golden_has_no_image_as_zero_pixels(shared: Path) -> None:
    """Row 3 of the golden pixels is what ``image_index`` -1 stands for."""
    assert not Golden(shared, "clip_encoder_tiny")["in.pixel_values"][3].any()


# -- images -----------------------------------------------------------------------------------------------------------


def rows_encoded(encoder: Encoder, inputs: Inputs) -> tuple[int, TowerOutputs]:
    """How many images went through the vision tower, and the outputs."""
    seen: list[int] = []
    handle = encoder.model.vision_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    outputs = encoder.towers(inputs)
    handle.remove()
    assert len(seen) == 1
    return seen[0], outputs


@torch.no_grad()
@pytest.mark.parametrize(
    ("index", "images", "encoded", "rows"),
    [
        pytest.param([-1], 0, 1, [0], id="one item without image"),
        pytest.param([-1] * 7, 0, 1, [0] * 7, id="no image at all"),
        pytest.param([0] * 7, 1, 1, [0] * 7, id="all share one image"),
        pytest.param([2, 0, 1], 3, 3, [2, 0, 1], id="every item its own"),
        pytest.param([-1, 1, 0, 1, -1], 2, 3, [2, 1, 0, 1, 2], id="mixed"),
        pytest.param([1, 1], 2, 2, [1, 1], id="an image that nobody has"),
    ],
)
def test_each_distinct_image_is_encoded_once(index: list[int], images: int, encoded: int, rows: list[int]) -> None:
    encoder = scratch()
    inputs = Inputs(*encoder.tokenize(["a"] * len(index)), pictures(images), torch.tensor(index))
    count, outputs = rows_encoded(encoder, inputs)
    assert count == len(outputs.image_global) == len(outputs.image_local) == encoded
    assert outputs.image_index.tolist() == rows
    assert inputs.image_index.tolist() == index  # the caller's tensor is left alone
    zero = encoder.model.image(torch.zeros(1, 3, 32, 32))[0][0]
    for item, row in zip(index, rows, strict=True):
        # one image alone and in a batch: another blocking of the same sums
        same = torch.allclose(outputs.image_global[row], zero, rtol=1e-4, atol=1e-5)
        assert same == (item < 0)


def test_pixels_are_normalised_by_the_models_mean_and_deviation() -> None:
    encoder = scratch()
    pixels = pictures(2)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    expected = ((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    found = encoder.normalise(pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(encoder.double().normalise(pixels), expected, rtol=1e-7, atol=1e-7)


# -- texts ------------------------------------------------------------------------------------------------------------


def test_texts_are_padded_and_truncated_with_their_end_kept() -> None:
    encoder = scratch()
    ids, mask = encoder.tokenize(TEXTS)
    end = encoder.tokenizer.eos_token_id
    assert ids.shape == mask.shape == (len(TEXTS), LT)
    assert ids.dtype == mask.dtype == torch.int64
    for row, kept in zip(ids.tolist(), mask.sum(dim=1).tolist(), strict=True):
        assert row[0] == encoder.tokenizer.bos_token_id
        assert row[kept - 1 :] == [end] * (LT - kept + 1)  # the closing end, then padding, which is the same token
        assert end not in row[: kept - 1]
    assert mask.sum(dim=1).tolist() == [9, 6, 3, LT, 2, 4, 6]


def test_the_tokenizers_own_padding_side_does_not_matter() -> None:
    tokens = clip_tokenizer()
    tokens.padding_side = tokens.truncation_side = "left"
    assert all(map(torch.equal, scratch(tokens).tokenize(TEXTS), scratch().tokenize(TEXTS)))


@torch.no_grad()
@pytest.mark.parametrize("first", [("a", "<start>", "<end>"), ("<end>", "<start>"), ("<start>", "a", "b", "<end>")])
def test_clip_pools_at_the_first_end_of_text_whatever_its_id(first: tuple[str, ...]) -> None:
    encoder = scratch(clip_tokenizer(first))
    ids, mask = encoder.tokenize(TEXTS)
    pooled, hidden = encoder.model.text(ids, mask)
    last = hidden[torch.arange(len(TEXTS)), mask.sum(dim=1) - 1]
    expected = torch.nn.functional.normalize(encoder.model.text_projection(last), dim=-1)
    torch.testing.assert_close(pooled, expected)


def test_clips_own_tokenizer_needs_only_its_two_files(shared: Path, tmp_path: Path) -> None:
    folder = str(shared / "clip-tokenizer")
    config = EncoderConfig(scratch=SMALL.model_copy(update={"tokenizer": folder}), max_text_tokens=8)
    encoder = Encoder.create(config)
    ids, mask = encoder.tokenize(["A photo of a  CAT", "a photo of a cat " * 9])
    cat = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ids.tolist() == [[*cat, 49407], [49406, 320, 1125, 539, 320, 2368, 320, 49407]]
    assert mask.sum(dim=1).tolist() == [7, 8]
    encoder.save_architecture(tmp_path)
    again = Encoder.from_architecture(config, tmp_path)
    assert torch.equal(again.tokenize(["A photo of a  CAT"])[0], ids[:1])


# -- weights ----------------------------------------------------------------------------------------------------------


def test_clips_names_are_hugging_faces(tmp_path: Path) -> None:
    folder = str(clip(tmp_path))
    encoder = Encoder.create(EncoderConfig(pretrained=folder, max_text_tokens=LT))
    theirs = CLIPModel.from_pretrained(folder).state_dict()
    ours = encoder.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rest = {name for name in encoder.state_dict() if not name.startswith("model.")}
    assert rest == {f"image_{kind}_proj.{part}" for kind in ("global", "local") for part in ("weight", "bias")}
    assert [name for name, p in encoder.named_parameters() if not p.requires_grad] == ["model.logit_scale"]


def test_half_precision_checkpoints_become_fp32(tmp_path: Path) -> None:
    folder = clip(tmp_path / "full")
    half = tmp_path / "half"
    save(half, CLIPModel.from_pretrained(folder).half(), clip_tokenizer())
    config = EncoderConfig(pretrained=str(half), max_text_tokens=LT)
    encoder = Encoder.create(config)
    encoder.save_architecture(tmp_path / "saved")
    for made in (encoder, Encoder.from_architecture(config, tmp_path / "saved")):
        assert {p.dtype for p in made.parameters()} == {torch.float32}


def test_scratch_follows_the_sizes() -> None:
    encoder = scratch(dt=20)  # as wide as it is: no layer
    assert list(vars(encoder.dims).values()) == [20, 32, 10, 10]
    assert encoder.image_size == 32
    assert not list(encoder.text_global_proj.parameters())
    text, vision = encoder.model.text_model.config, encoder.model.vision_model.config
    assert (text.hidden_act, text.intermediate_size, text.num_hidden_layers) == ("quick_gelu", 128, 2)
    assert (vision.hidden_act, vision.intermediate_size, vision.patch_size) == ("quick_gelu", 96, 16)
    assert (text.max_position_embeddings, text.vocab_size) == (LT, len(encoder.tokenizer))
    assert encoder.training is False
    assert Encoder.create(encoder.config, clip_tokenizer()).training is True


def test_the_seed_decides_scratch_weights() -> None:
    first, second = scratch().state_dict(), scratch().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def test_bf16_autocast() -> None:
    encoder = scratch()
    inputs = Inputs(*encoder.tokenize(TEXTS), pictures(2), torch.tensor([0, 1, -1, 0, 1, -1, 0]))
    exact = encoder(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encoder(inputs)
    for name in ("text_global", "text_local", "image_global", "image_local"):
        # three digits per operation over two layers, relative to values of order one
        torch.testing.assert_close(getattr(rounded, name).float(), getattr(exact, name), rtol=0.1, atol=0.1)
