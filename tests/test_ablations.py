"""Every switch of the M3EL paper's Tables 4, 5, 7 and 9 builds, scores, trains, and uses the weights that it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from m3el_fast.features import Scores
from m3el_fast.models import MELModel
from m3el_fast.trainer import make_optimizer
from tiny import tiny_config, tiny_inputs, tiny_model

LOSSES = {"union", "text", "image", "cross", "contrastive"}
SCORES = {"union", "text", "image", "cross", "t2v", "v2t"}
# an unread image_global leaves these without a gradient, beside its LayerNorm
IMAGE_GLOBAL = {
    "encoder.image_global_proj",
    "encoder.model.vision_model.post_layernorm",
    "encoder.model.visual_projection",
}


@dataclass(frozen=True)
class Case:
    """A setting of the switches and what it must lead to.

    ``unread``: prefixes of parameters that no loss depends on, which are features' LayerNorms and projections that no
    module of the ablated model reads.
    """

    switches: dict[str, Any]
    losses: set[str] = field(default_factory=lambda: LOSSES)
    scores: set[str] = field(default_factory=lambda: SCORES)
    unread: set[str] = field(default_factory=set)


RELEASED = {"union": "released", "icl_variant": "released"}
MIMIC = LOSSES - {"contrastive"}
CASES = {
    "paper": Case({}),
    # Table 4: losses off, modules off, other contrastive losses
    "without-union-loss": Case({"union_loss": False}, LOSSES - {"union"}),
    "without-text-loss": Case({"text_loss": False}, LOSSES - {"text"}),
    "without-image-loss": Case({"image_loss": False}, LOSSES - {"image"}),
    "without-cross-loss": Case({"cross_loss": False}, LOSSES - {"cross"}),
    "without-contrastive-loss": Case({"contrastive": "none"}, LOSSES - {"contrastive"}),
    "contrastive-loss-alone": Case(
        {f"{name}_loss": False for name in ("union", "text", "image", "cross")},
        {"contrastive"},
        unread={"matcher.", "encoder.image_local_proj"},
    ),
    "without-text": Case({"text": False}, LOSSES - {"text"}, SCORES - {"text"}),
    "without-image": Case({"image": False}, LOSSES - {"image"}, SCORES - {"image"}),
    "without-cross": Case({"cross": False}, LOSSES - {"cross"}, SCORES - {"cross", "t2v", "v2t"}),
    "text-alone": Case(
        {"image": False, "cross": False, "contrastive": "none"},
        {"union", "text"},
        {"union", "text"},
        {"matcher.image_", "encoder.image_local_proj", "encoder.model.vision_model", *IMAGE_GLOBAL},
    ),
    "image-alone": Case(
        {"text": False, "cross": False},
        {"union", "image", "contrastive"},
        {"union", "image"},
        {"matcher.text_"},
    ),
    "t2v-alone": Case(
        {"text": False, "image": False, "directions": "t2v", "contrastive": "none"},
        {"union", "cross"},
        {"union", "cross", "t2v"},
        {"matcher.text_local_norm", "matcher.image_global_norm", *IMAGE_GLOBAL},
    ),
    "infonce": Case({"contrastive": "infonce"}),
    "mclet": Case({"contrastive": "mclet"}),
    "icl-released": Case({"icl_variant": "released"}),
    # Table 5
    **{f"{pooling}-pooling": Case({"pooling": pooling}) for pooling in ("mean", "max", "soft")},
    # Table 7
    "t2v": Case({"directions": "t2v"}, LOSSES, SCORES - {"v2t"}),
    "v2t": Case({"directions": "v2t"}, LOSSES, SCORES - {"t2v"}),
    # Table 9
    "independent": Case({"intra_modal": "independent"}),
    **{f"{heads}-heads": Case({"heads": heads}) for heads in range(1, 9)},
    "lambda-0": Case({"lam": 0.0}),
    # the released code's forms
    "released": Case(RELEASED, LOSSES - {"cross"} | {"t2v", "v2t"}),
    "released-t2v": Case(RELEASED | {"cross_form": "t2v"}, LOSSES - {"cross"} | {"t2v"}, SCORES - {"v2t"}),
    "released-without-cross-loss": Case(RELEASED | {"cross_loss": False}, LOSSES - {"cross"}),
    "t2v-form-of-the-paper": Case({"cross_form": "t2v"}, LOSSES, SCORES - {"v2t"}),
    "masks": Case({"mask_duplicates": True, "token_mask": True}),
    "mimic": Case({"type": "mimic"}, MIMIC, SCORES - {"v2t"}),
    "mimic-masks": Case({"type": "mimic", "mask_duplicates": True, "token_mask": True}, MIMIC, SCORES - {"v2t"}),
}


def build(switches: dict[str, Any], projection_dim: int) -> MELModel:
    config = tiny_config(Path("unused"), switches)
    scratch = config.encoder.scratch
    assert scratch is not None
    encoder = config.encoder.model_copy(
        update={"scratch": scratch.model_copy(update={"projection_dim": projection_dim})}
    )
    return tiny_model(config.model_copy(update={"encoder": encoder}))


def moved_by_rounding(name: str) -> bool:
    """A softmax does not see what is added to all its logits: biases of keys have the gradient 0."""
    return name.endswith(("key.bias", "k_proj.bias"))


# text_local is as wide as the text tower (16); text_global is as wide in CLIP ViT-B/32, not in general
@pytest.mark.parametrize("projection_dim", [16, 12], ids=["one-text-width", "two-text-widths"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_of_training(case: Case, projection_dim: int) -> None:
    model = build(case.switches, projection_dim)
    entities, mentions = tiny_inputs(model.encoder, 4, 1), tiny_inputs(model.encoder, 4, 2)
    gold = torch.tensor([3, 1, 3, 0])
    losses = model(entities, mentions, gold)
    assert losses.keys() == case.losses | {"total"}
    assert torch.equal(losses["total"], torch.stack([v for k, v in losses.items() if k != "total"]).sum())
    optimizer = make_optimizer(model, model.config.train)
    losses["total"].backward()

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    without = {name for name, p in trained.items() if p.grad is None}
    assert without == {name for name in trained if name.startswith(tuple(case.unread))}
    for prefix in case.unread:
        assert any(name.startswith(prefix) for name in without), prefix
    for name in trained.keys() - without:
        grad = trained[name].grad
        assert grad is not None
        assert grad.isfinite().all(), name
        assert grad.any() or moved_by_rounding(name), name
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer.step()
    unmoved = {name for name, p in trained.items() if torch.equal(p, before[name])}
    assert {n for n in unmoved ^ without if not moved_by_rounding(n)} == set()
    assert model(entities, mentions, gold)["total"].isfinite()


@torch.no_grad()
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_scores_and_their_union(case: Case) -> None:
    model = build(case.switches, 16).eval()
    entities, mentions = tiny_inputs(model.encoder, 5, 1), tiny_inputs(model.encoder, 3, 2)
    scores: Scores = model.matcher(model.features(entities), model.features(mentions))
    found = {name: value for name, value in vars(scores).items() if value is not None}
    assert found.keys() == case.scores
    assert all(value.shape == (3, 5) for value in found.values())
    directions = [found[name] for name in ("t2v", "v2t") if name in found]
    apart = case.switches.get("union") == "released"
    members = [found[name] for name in ("text", "image") if name in found]
    members += directions if apart or not directions else [torch.stack(directions).mean(0)]
    torch.testing.assert_close(found["union"], torch.stack(members).mean(0))
    if directions:
        torch.testing.assert_close(found["cross"], torch.stack(directions).mean(0))


def test_heads_and_lambda_and_pooling_matter() -> None:
    """Switches that change no name must change numbers."""
    unions: list[torch.Tensor] = []
    forms: list[dict[str, Any]] = [{"heads": heads} for heads in range(1, 9)]
    forms += [{"lam": 0.5}, {"pooling": "max"}, {"pooling": "soft"}, {"token_mask": True}]
    for switches in forms:
        model = build(switches, 16).eval()
        with torch.no_grad():
            features = [model.features(tiny_inputs(model.encoder, 4, seed)) for seed in (1, 2)]
            unions.append(model.matcher(*features).union)
    for i, one in enumerate(unions):
        assert not any(torch.allclose(one, other, rtol=0, atol=1e-6) for other in unions[i + 1 :]), forms[i]
