"""Every supported architecture gives what its own Hugging Face model gives, and survives saving and training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertModel,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipModel,
    CLIPModel,
    RobertaForMaskedLM,
    Siglip2Model,
    SiglipModel,
    SiglipVisionModel,
    VisionTextDualEncoderModel,
    ViTForImageClassification,
    ViTModel,
)

from encoder_folders import LT, MEAN, PAIRS, POSITIONS, STD, TEXTS, WHOLE
from m3el_fast.config import EncoderConfig
from m3el_fast.encoder import Encoder
from m3el_fast.features import Features, Inputs

ALL = [*WHOLE, *PAIRS]
PIXELS = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
INDEX = torch.tensor([0, 1, -1, 2, 0, -1, 2])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Configuration keys of every architecture -> folders."""
    root = tmp_path_factory.mktemp("models")
    made = {name: {"pretrained": str(make(root / name))} for name, make in WHOLE.items()}
    for name, (text, vision) in PAIRS.items():
        made[name] = {"text": str(text(root / name / "text")), "vision": str(vision(root / name / "vision"))}
    return made


def make(folders: dict[str, Any], **changes: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder.create(EncoderConfig(**{"max_text_tokens": LT, "dv": 10, **folders, **changes})).eval()


def batch(encoder: Encoder) -> Inputs:
    return Inputs(*encoder.tokenize(TEXTS), PIXELS, INDEX)


def normalised() -> Tensor:
    """The distinct images and the all-zero one, by the formula, in fp64."""
    images = ((PIXELS.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
    return torch.cat([images, torch.zeros(1, 3, 32, 32)]).float()


# -- what the Hugging Face models themselves say: text global, text local, image global, image local ------------------


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def by_forward(kind: Any) -> Callable[..., tuple[Tensor, ...]]:
    def expected(pretrained: str, tokens: dict[str, Tensor]) -> tuple[Tensor, ...]:
        out = kind.from_pretrained(pretrained)(**tokens, pixel_values=normalised())
        text, vision = out.text_model_output, out.vision_model_output
        return out.text_embeds, text.last_hidden_state, out.image_embeds, vision.last_hidden_state

    return expected


def padded(pretrained: str) -> dict[str, Tensor]:
    """SigLIP's own recipe: padded to its full length (at the right, as both versions were trained), no mask."""
    tokenizer = AutoTokenizer.from_pretrained(pretrained, padding_side="right")
    ids = tokenizer(TEXTS, truncation=True, max_length=LT).input_ids
    return {
        "input_ids": tokenizer.pad(
            {"input_ids": ids}, padding="max_length", max_length=POSITIONS, return_tensors="pt"
        ).input_ids
    }


def siglip(pretrained: str, tokens: dict[str, Tensor]) -> tuple[Tensor, ...]:
    text_global, text_local, *image = by_forward(SiglipModel)(pretrained, padded(pretrained))
    return text_global, text_local[:, :LT], *image


def siglip2(pretrained: str, tokens: dict[str, Tensor]) -> tuple[Tensor, ...]:
    images, patches = normalised(), []
    for row in range(2):
        for column in range(2):
            patch = images[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            patches.append(patch.permute(0, 2, 3, 1).flatten(1))
    out = Siglip2Model.from_pretrained(pretrained)(
        **padded(pretrained),
        pixel_values=torch.stack(patches, dim=1),
        pixel_attention_mask=torch.ones(len(images), 4, dtype=torch.int64),
        spatial_shapes=torch.tensor([[2, 2]] * len(images)),
    )
    text, vision = out.text_model_output.last_hidden_state[:, :LT], out.vision_model_output.last_hidden_state
    return out.text_embeds, text, out.image_embeds, vision


def blip_vqa(pretrained: str, tokens: dict[str, Tensor]) -> tuple[Tensor, ...]:
    model = BlipForQuestionAnswering.from_pretrained(pretrained)
    text = model.text_encoder(**tokens).last_hidden_state
    vision = model.vision_model(pixel_values=normalised())
    return text[:, 0], text, vision.pooler_output, vision.last_hidden_state


def blip_retrieval(pretrained: str, tokens: dict[str, Tensor]) -> tuple[Tensor, ...]:
    model = BlipForImageTextRetrieval.from_pretrained(pretrained)
    text = model.text_encoder(**tokens).last_hidden_state
    vision = model.vision_model(pixel_values=normalised()).last_hidden_state
    return unit(model.text_proj(text[:, 0])), text, unit(model.vision_proj(vision[:, 0])), vision


def bert_vit(text: str, vision: str, tokens: dict[str, Tensor]) -> tuple[Tensor, ...]:
    words = BertModel.from_pretrained(text)(**tokens)
    images = ViTModel.from_pretrained(vision)(normalised())
    return words.pooler_output, words.last_hidden_state, images.pooler_output, images.last_hidden_state


def roberta_clip(text: str, vision: str, tokens: dict[str, Tensor]) -> tuple[Tensor, ...]:
    words = RobertaForMaskedLM.from_pretrained(text).roberta(**tokens).last_hidden_state
    model = CLIPModel.from_pretrained(vision)
    images = model.vision_model(normalised())
    return words[:, 0], words, unit(model.visual_projection(images.pooler_output)), images.last_hidden_state


def clip_vit(text: str, vision: str, tokens: dict[str, Tensor]) -> tuple[Tensor, ...]:
    model = CLIPModel.from_pretrained(text)
    words = model.text_model(**tokens)
    images = ViTForImageClassification.from_pretrained(vision).vit(normalised()).last_hidden_state
    return unit(model.text_projection(words.pooler_output)), words.last_hidden_state, images[:, 0], images


def means(text: str, vision: str, tokens: dict[str, Tensor]) -> tuple[Tensor, ...]:
    words = BertForMaskedLM.from_pretrained(text).bert(**tokens).last_hidden_state
    average = torch.stack(
        [row[: int(mask.sum())].mean(0) for row, mask in zip(words, tokens["attention_mask"], strict=True)]
    )
    images = SiglipVisionModel.from_pretrained(vision)(normalised()).last_hidden_state
    return average, words, unit(images.mean(1)), images


EXPECTED: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "clip": by_forward(CLIPModel),
    "siglip": siglip,
    "siglip2": siglip2,
    "blip": by_forward(BlipModel),
    "blip-vqa": blip_vqa,
    "blip-retrieval": blip_retrieval,
    "dual-encoder": by_forward(VisionTextDualEncoderModel),
    "bert+vit": bert_vit,
    "roberta+clip": roberta_clip,
    "clip+vit-classifier": clip_vit,
    "bert-without-cls+siglip-without-head": means,
}


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_towers_equal_the_hugging_face_model(name: str, folders: dict[str, Any]) -> None:
    encoder = make(folders[name])
    ids, mask = encoder.tokenize(TEXTS)
    outputs = encoder.towers(batch(encoder))
    expected = EXPECTED[name](**folders[name], tokens={"input_ids": ids, "attention_mask": mask})
    found = outputs.text_global, outputs.text_local, outputs.image_global, outputs.image_local
    for ours, theirs in zip(found, expected, strict=True):
        # fp32, tens of values summed per output and two orders of the same operations
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert outputs.image_index.tolist() == [0, 1, 3, 2, 0, 3, 2]
    assert outputs.attention_mask is mask or torch.equal(outputs.attention_mask, mask)


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_dims_describe_the_features(name: str, folders: dict[str, Any]) -> None:
    encoder = make(folders[name], dt=9)
    features = encoder(batch(encoder))
    shapes = [
        features.text_global.shape,
        features.text_local.shape,
        features.image_global.shape,
        features.image_local.shape,
    ]
    assert [shape[-1] for shape in shapes] == list(vars(encoder.dims).values()) == [9, 32, 10, 10]
    assert shapes[1][:2] == (len(TEXTS), LT)
    assert shapes[2][0] == shapes[3][0] == 4
    torch.testing.assert_close(features.text_mask, encoder.tokenize(TEXTS)[1].bool())


@pytest.mark.parametrize("name", ALL)
def test_saved_architecture_and_weights_give_the_same_features(
    name: str, folders: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make(folders[name])
    encoder.save_architecture(tmp_path / "saved")
    save_file(encoder.state_dict(), tmp_path / "saved" / "model.safetensors")
    features = encoder(batch(encoder))
    # the original folders' names lead nowhere any more, and nobody may ask the hub
    moved = shutil.move(tmp_path / "saved", tmp_path / "elsewhere")
    config = EncoderConfig(**dict.fromkeys(folders[name], "no/such-model"), max_text_tokens=LT, dv=10)
    monkeypatch.setattr("m3el_fast.encoder.hub._hub_answers", lambda: pytest.fail("asked the hub"))
    torch.manual_seed(7)
    again = Encoder.from_architecture(config, moved)
    again.load_state_dict(load_file(moved / "model.safetensors"))
    assert all(map(torch.equal, again.tokenize(TEXTS), encoder.tokenize(TEXTS)))
    assert (again.dims, again.image_size) == (encoder.dims, encoder.image_size)
    for ours, theirs in zip(tensors(again.eval()(batch(again))), tensors(features), strict=True):
        assert torch.equal(ours, theirs)
    frozen = [[n for n, p in e.named_parameters() if not p.requires_grad] for e in (encoder, again)]
    assert frozen[0] == frozen[1]
    assert sorted(path.name for path in moved.iterdir() if path.name.startswith("tmp")) == []


@pytest.mark.parametrize("name", ALL)
def test_every_trainable_parameter_gets_a_gradient(name: str, folders: dict[str, Any]) -> None:
    encoder = make(folders[name], dt=9).train()
    gradients = gradients_of(encoder)
    trainable = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert trainable == gradients.keys()
    frozen = {n for n, _ in encoder.named_parameters()} - trainable
    unused = ("logit_scale", "logit_bias", "crossattention")
    assert all(any(part in n for part in unused) for n in frozen), frozen
    zero = sorted(n for n, g in gradients.items() if not g.any())
    # the key bias shifts all logits of a softmax alike
    assert all(n.endswith(("k_proj.bias", "key.bias", "attention.in_proj_bias")) for n in zero), zero


@pytest.mark.parametrize("name", ALL)
def test_gradient_checkpointing_gives_the_same_gradients(name: str, folders: dict[str, Any]) -> None:
    plain, checkpointed = (without_dropout(make(folders[name], gradient_checkpointing=on)) for on in (False, True))
    calls: list[nn.Module] = []
    for module in checkpointed.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda module, _: calls.append(module))
    expected, found = gradients_of(plain.train()), gradients_of(checkpointed.train())
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():  # the same operations once more
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()), msg=key)
    again = {module for module in calls if calls.count(module) > 1}
    for tower in (checkpointed.model.text_model, checkpointed.model.vision_model):
        assert again & set(tower.modules()), "nothing was computed again in the backward pass"


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_eager_equals_sdpa(name: str, folders: dict[str, Any]) -> None:
    sdpa, eager = (make(folders[name], attention=kind) for kind in ("sdpa", "eager"))
    has_sdpa = "eager" if name.startswith("blip") else "sdpa"  # transformers has no other attention for BLIP
    for encoder, kind in ((sdpa, has_sdpa), (eager, "eager")):
        towers = encoder.model.text_model, encoder.model.vision_model
        assert [tower.config._attn_implementation for tower in towers] == [kind, kind]
    inputs = batch(sdpa)
    for ours, theirs in zip(tensors(eager(inputs)), tensors(sdpa(inputs)), strict=True):
        # fp32 softmax and sums in another order, two layers deep
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ALL)
def test_rows_do_not_depend_on_the_batch(name: str, folders: dict[str, Any]) -> None:
    encoder = make(folders[name])
    whole = encoder(batch(encoder))
    for i, text in enumerate(TEXTS):
        row = int(INDEX[i])
        pixels = PIXELS[row : row + 1] if row >= 0 else PIXELS[:0]
        one = encoder(Inputs(*encoder.tokenize([text]), pixels, torch.tensor([min(row, 0)])))
        assert whole.image_index is not None
        assert one.image_index is not None
        place = whole.image_index[i]
        # a matrix product's blocking depends on its number of rows
        torch.testing.assert_close(one.text_local[0], whole.text_local[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.text_global[0], whole.text_global[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            one.image_global[one.image_index[0]], whole.image_global[place], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(one.image_local[one.image_index[0]], whole.image_local[place], rtol=1e-4, atol=1e-5)


def tensors(features: Features) -> list[Tensor]:
    return [features.text_global, features.text_local, features.image_global, features.image_local]


def gradients_of(encoder: Encoder) -> dict[str, Tensor]:
    encoder.zero_grad()
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(4)
    loss = torch.stack(
        [(x * torch.randn(x.shape, generator=generator)).sum() for x in tensors(encoder(batch(encoder)))]
    ).sum()
    loss.backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def without_dropout(encoder: Encoder) -> Encoder:
    for module in encoder.modules():
        for name in ("p", "dropout", "attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return encoder
