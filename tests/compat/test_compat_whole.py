"""Whole released checkpoints (encoder and matcher) in their authors' file format: in, out, saved, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

import encoder_folders as made
from golden import Golden, close
from m3el_fast.compat import load_released, to_released
from m3el_fast.compat.names import m3el_names, mimic_names
from m3el_fast.config import M3ELConfig, MIMICConfig
from m3el_fast.errors import InputError
from m3el_fast.features import FeatureDims, Features, Inputs, TowerOutputs
from m3el_fast.matching import build_matcher
from m3el_fast.models import M3EL, MIMIC, MELModel, load_model

State = dict[str, Tensor]
D = 12
FORMS = {"m3el-bidirectional": True, "m3el-t2v": False, "mimic": None}
forms = pytest.mark.parametrize("bidirectional", FORMS.values(), ids=FORMS)


# -- making checkpoints -----------------------------------------------------------------------------------------------


def released_matcher(dims: FeatureDims, bidirectional: bool | None) -> State:
    """A matcher's weights under the released names, with those that the released code never uses."""
    generator = torch.Generator().manual_seed(3)
    config = (
        MIMICConfig(d=D) if bidirectional is None else M3ELConfig.released(bidirectional).model_copy(update={"d": D})
    )
    names = mimic_names() if bidirectional is None else m3el_names(bidirectional)
    ours = build_matcher(config, dims).state_dict()
    state = {theirs: 0.3 * torch.randn(ours[mine].shape, generator=generator) for theirs, mine in names.items()}
    if bidirectional is None:
        return state | {"cmfu.context_layer_norm.weight": torch.full((D,), 7.0)}
    heads = f"cmm{'b' if bidirectional else ''}.multi_head_module.weight"
    state[heads] = state[heads].abs()[:, None]
    never_used = {"weight_cl_loss.logit_scale": torch.tensor(4.6), "text_fc.bias": torch.arange(D) / 7}
    other_form = {"cmm.gate_fc.bias" if bidirectional else "cmmb.gate_fc.bias": torch.tensor([5.0])}
    return state | never_used | other_form


def checkpoint(encoder: State, dims: FeatureDims, bidirectional: bool | None) -> State:
    """encoder.* and matcher.*, with the index that older transformers stored."""
    positions = {"clip.text_model.embeddings.position_ids": torch.arange(50)[None]}
    positions["clip.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    state = {f"encoder.{name}": value for name, value in (positions | encoder).items()}
    return state | {f"matcher.{name}": v for name, v in released_matcher(dims, bidirectional).items()}


def lightning(state: State, path: Path, **model: Any) -> Path:
    """A file as Lightning 1.7 writes it: an OmegaConf configuration among the hyperparameters."""
    omegaconf = pytest.importorskip("omegaconf")
    settings = {"model": {"weight": 0.5, "loss_temperature": 0.07, **model}, "data": {"text_max_length": 40}}
    content = {
        "epoch": 3,
        "global_step": 500,
        "pytorch-lightning_version": "1.7.7",
        "state_dict": state,
        "hyper_parameters": {"args": omegaconf.OmegaConf.create(settings)},
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}}],
        "callbacks": {},
    }
    torch.save(content, path)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A CLIP whose text tower is as wide as its projection, as the released code's one text_fc needs."""
    words = made.clip_tokenizer()
    text = {**made._text(words), "max_position_embeddings": 50}
    vision = {**made.SIZES, **made.IMAGE, "hidden_size": 48}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    return made.save(tmp_path / "clip", CLIPModel(config), words)


def fine_tuned(clip: Path) -> tuple[State, FeatureDims]:
    """An encoder's released weights: the CLIP's after some training, and the two projections."""
    generator = torch.Generator().manual_seed(9)
    weights = {f"clip.{name}": v for name, v in CLIPModel.from_pretrained(clip).state_dict().items()}
    weights |= {"image_cls_fc.weight": torch.zeros(16, 32), "image_cls_fc.bias": torch.zeros(16)}
    weights |= {"image_tokens_fc.weight": torch.zeros(16, 48), "image_tokens_fc.bias": torch.zeros(16)}
    weights = {
        n: v + 0.1 * torch.randn(v.shape, generator=generator) if v.is_floating_point() else v
        for n, v in weights.items()
    }
    return weights, FeatureDims(32, 32, 16, 16)


@pytest.fixture
def state(clip: Path, bidirectional: bool | None) -> State:
    return checkpoint(*fine_tuned(clip), bidirectional)


def load(source: State | Path, clip: Path, bidirectional: bool | None) -> MELModel:
    model = load_released(source, bidirectional, encoder=clip)
    assert isinstance(model, MELModel)
    assert not model.training
    return model


def batch(model: MELModel) -> tuple[Inputs, Inputs]:
    """Inputs of 4 entities and 3 mentions; the first of each has no image."""
    sides = []
    for n in (4, 3):
        ids, mask = model.encoder.tokenize(made.TEXTS[:n])
        pixels = torch.arange((n - 1) * 32 * 32 * 3).remainder(251).to(torch.uint8).view(n - 1, 32, 32, 3)
        sides.append(Inputs(ids, mask, pixels, torch.arange(n) - 1))
    return sides[0], sides[1]


@torch.no_grad()
def scores(model: MELModel) -> dict[str, Tensor]:
    entities, mentions = batch(model)
    found = model.matcher(model.features(entities), model.features(mentions))
    return {name: value for name, value in vars(found).items() if value is not None}


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) and value.dtype == other[name].dtype for name, value in one.items()
    )


# -- in and out -------------------------------------------------------------------------------------------------------


@forms
def test_a_lightning_file_and_the_way_back(
    state: State, bidirectional: bool | None, clip: Path, tmp_path: Path
) -> None:
    model = load(lightning(state, tmp_path / "epoch=3.ckpt"), clip, bidirectional)
    assert type(model) is (MIMIC if bidirectional is None else M3EL)
    if isinstance(model.config.model, M3ELConfig):
        settings = {"lam": 0.5, "tau": 0.07, "d": D}
        assert model.config.model == M3ELConfig.released(bool(bidirectional)).model_copy(update=settings)
    back = to_released(model)
    assert equal(back, state)
    assert equal(to_released(load(back, clip, bidirectional)), state)


@forms
def test_the_encoder_is_the_fine_tuned_clip(state: State, bidirectional: bool | None, clip: Path) -> None:
    model = load(state, clip, bidirectional)
    theirs = CLIPModel.from_pretrained(clip).eval()
    prefix = "encoder.clip."
    known = theirs.state_dict()
    theirs.load_state_dict({n: state[prefix + n] for n in known})
    entities, _ = batch(model)
    pixels = torch.cat([model.encoder.normalise(entities.pixels), torch.zeros(1, 3, 32, 32)])[[3, 0, 1, 2]]
    with torch.no_grad():
        features = model.features(entities)
        expected = theirs(input_ids=entities.input_ids, attention_mask=entities.attention_mask, pixel_values=pixels)
        tokens = expected.vision_model_output.last_hidden_state

        def projected(x: Tensor, name: str) -> Tensor:
            return x @ state[f"encoder.{name}.weight"].T + state[f"encoder.{name}.bias"]

        assert features.image_index is not None
        found = Features(
            features.text_global,
            features.text_local,
            features.image_global[features.image_index],
            features.image_local[features.image_index],
        )
        torch.testing.assert_close(found.text_global, expected.text_embeds)
        torch.testing.assert_close(found.text_local, expected.text_model_output.last_hidden_state)
        torch.testing.assert_close(found.image_global, projected(expected.image_embeds, "image_cls_fc"))
        torch.testing.assert_close(found.image_local, projected(tokens, "image_tokens_fc"))


@forms
def test_it_scores_as_its_matcher_alone(state: State, bidirectional: bool | None, clip: Path) -> None:
    """The bare matcher's numbers are pinned to the released code's by the golden tests."""
    model = load(state, clip, bidirectional)
    bare = {n.removeprefix("matcher."): v for n, v in state.items() if n.startswith("matcher.")}
    matcher = load_released(bare, bidirectional)
    with torch.no_grad():
        expected = matcher(*(model.features(side) for side in batch(model)))
    found = scores(model)
    assert found.keys() == {name for name, value in vars(expected).items() if value is not None}
    assert all(torch.equal(value, getattr(expected, name)) for name, value in found.items())


@forms
def test_it_is_saved_as_a_checkpoint_of_ours(
    state: State, bidirectional: bool | None, clip: Path, tmp_path: Path
) -> None:
    model = load(lightning(state, tmp_path / "last.ckpt"), clip, bidirectional)
    model.save_pretrained(tmp_path / "ours")
    clip.rename(tmp_path / "gone")
    again = load_model(tmp_path / "ours")
    assert again.config == model.config
    found, expected = scores(again), scores(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert "position_ids" not in " ".join(load_file(tmp_path / "ours" / "model.safetensors"))
    with pytest.raises(ValueError, match="expected one that load_released returned"):
        to_released(again)


@forms
def test_trained_weights_go_back(state: State, bidirectional: bool | None, clip: Path) -> None:
    model = load(state, clip, bidirectional).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(batch(model)[1], batch(model)[1], torch.arange(3))["total"].backward()
    optimizer.step()
    back = to_released(model)
    assert back.keys() == state.keys()
    changed = {name for name, value in state.items() if not torch.equal(value, back[name])}
    key = "matcher.tglu.fc_query.weight" if bidirectional is None else "matcher.timm.fc_query.weight"
    assert changed >= {key, "encoder.clip.text_projection.weight", "encoder.image_cls_fc.weight"}
    assert not any("position_ids" in name or "logit_scale" in name for name in changed)
    assert equal(to_released(load(back, clip, bidirectional)), back)


@pytest.mark.parametrize("bidirectional", [False, None], ids=["m3el-t2v", "mimic"])
def test_the_golden_clip(bidirectional: bool | None, shared: Path, tmp_path: Path) -> None:
    """The encoder's golden numbers through a whole checkpoint, at the tiny CLIP's own sizes.

    Its text tower is wider than its projection, which the released code's bidirectional form cannot read.
    """
    golden = Golden(shared, "clip_encoder_tiny")
    words = [*made.SENTENCE.split(), *(f"w{i}" for i in range(1000))][:998]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 998, "eos_token_id": 999, "pad_token_id": 999}
    config = CLIPConfig(
        text_config={**sizes, **ids, "vocab_size": 1000, "max_position_embeddings": 20},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    tokens = made.tokenizer("<start>", "<end>", "<end>", (*words, "<start>", "<end>"))
    folder = made.save(tmp_path / "clip", CLIPModel(config), tokens)
    state = checkpoint(golden.weights(torch.float32), FeatureDims(32, 64, 16, 16), bidirectional)
    path = lightning(state, tmp_path / "golden.ckpt")
    model = load(path, folder, bidirectional)
    assert model.config.encoder.max_text_tokens == 20
    mask = golden["in.attention_mask"]
    with torch.no_grad():
        text, image = (
            model.encoder.model.text(golden["in.input_ids"], mask),
            model.encoder.model.image(golden["in.pixel_values"]),
        )
        features = model.features(TowerOutputs(*text, *image, torch.arange(4), mask))
    for ours, theirs in (
        ("text_global", "text_cls"),
        ("text_local", "text_tokens"),
        ("image_global", "image_cls"),
        ("image_local", "image_tokens"),
    ):
        close(getattr(features, ours), golden[f"out64.{theirs}"])
    assert equal(to_released(model), state)
    model.save_pretrained(tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    with torch.no_grad():
        one, other = (m.matcher(m.features(batch(m)[0]), m.features(batch(m)[1])) for m in (model, again))
    assert torch.equal(one.union, other.union)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bidirectional", [True])
def test_other_precisions_are_kept(dtype: torch.dtype, bidirectional: bool, state: State, clip: Path) -> None:
    converted = {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}
    model = load(converted, clip, bidirectional)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert equal(to_released(model), converted)


@pytest.mark.parametrize("bidirectional", [True])
def test_a_safetensors_file(state: State, bidirectional: bool, clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "released.safetensors"
    save_file(state, path)
    assert equal(to_released(load(path, clip, bidirectional)), state)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"released\.safetensors: expected a safetensors file, got "):
        load(path, clip, bidirectional)


# -- refusals ---------------------------------------------------------------------------------------------------------

Damage = Callable[[State], Any]
ONE = torch.ones(1)
DAMAGES: dict[str, tuple[Damage, str]] = {
    "stray": (
        lambda s: s.update({"loss.weight": ONE, "ema.weight": ONE}),
        "state dict: expected weights under encoder. and matcher. only, got ema.weight, loss.weight",
    ),
    "unknown-in-the-encoder": (
        lambda s: s.update({"encoder.adapter.weight": ONE}),
        "state dict: expected the weights of this model, got 1 unknown: adapter.weight",
    ),
    "unknown-in-the-matcher": (
        lambda s: s.update({"matcher.adapter.weight": ONE}),
        "state dict: expected the weights of this model, got 1 unknown: adapter.weight",
    ),
    "missing-in-the-encoder": (
        lambda s: s.pop("encoder.clip.text_projection.weight"),
        "state dict: expected the weights of this model, got 1 missing: model.text_projection.weight",
    ),
    "missing-in-the-matcher": (
        lambda s: s.pop("matcher.iimm.fc_cls.bias"),
        "state dict: expected the weights of this model, got 1 missing: iimm.fc_cls.bias",
    ),
    "shape-in-the-encoder": (
        lambda s: s.update({"encoder.image_cls_fc.bias": torch.ones(5)}),
        "state dict, image_global_proj.bias: expected shape (16,), got (5,)",
    ),
    "no-positions": (
        lambda s: s.pop("encoder.clip.text_model.embeddings.position_embedding.weight"),
        "state dict: expected the weights of this model, "
        "got 1 missing: model.text_model.embeddings.position_embedding.weight",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("bidirectional", [True])
def test_what_does_not_fit_is_named(
    damage: Damage, message: str, state: State, bidirectional: bool, clip: Path
) -> None:
    damage(state)
    with pytest.raises(InputError) as refusal:
        load(state, clip, bidirectional)
    assert str(refusal.value) == message


@pytest.mark.parametrize("bidirectional", [True])
def test_the_form_that_was_not_stored_is_refused(state: State, bidirectional: bool, clip: Path) -> None:
    with pytest.raises(InputError, match=r"state dict: expected the weights of this model, got \d+ missing: cmm\."):
        load(state, clip, not bidirectional)


@pytest.mark.parametrize("bidirectional", [True])
def test_the_wrong_clip_is_refused(state: State, bidirectional: bool, tmp_path: Path) -> None:
    """Towers of other sizes, and texts longer than its positions."""
    words = made.clip_tokenizer()
    text = {**made._text(words), "max_position_embeddings": 50}
    config = CLIPConfig(text_config=text, vision_config={**made.SIZES, **made.IMAGE}, projection_dim=32)
    other = made.save(tmp_path / "other", CLIPModel(config), words)
    with pytest.raises(InputError, match=r"state dict, model\.vision_model\.\S+: expected shape .*32.*, got .*48"):
        load(state, other, bidirectional)
    short = made.clip(tmp_path / "short")
    with pytest.raises(InputError, match=r"encoder\.max_text_tokens: expected at most 24, .*, got 40"):
        load(state, short, bidirectional)


@pytest.mark.parametrize("bidirectional", [True])
def test_settings_that_are_no_numbers_are_refused(
    state: State, bidirectional: bool, clip: Path, tmp_path: Path
) -> None:
    path = lightning(state, tmp_path / "odd.ckpt", loss_temperature="hot")
    with pytest.raises(InputError) as refusal:
        load(path, clip, bidirectional)
    assert str(refusal.value) == f"{path}, key tau: expected a valid number, got 'hot'"
