"""The joint loss of a whole model: precision under autocast, and pairs with the same gold entity."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m3el_fast import ops
from m3el_fast.config import M3ELConfig
from m3el_fast.features import Features
from m3el_fast.losses import ContrastiveLoss
from m3el_fast.models import MELModel
from tiny import tiny_config, tiny_inputs, tiny_model

GOLD = torch.tensor([4, 7, 4, 1, 7, 4])


def small(**switches: Any) -> MELModel:
    return tiny_model(tiny_config(Path("unused"), switches))


# -- autocast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", [{}, {"contrastive": "mclet"}, {"type": "mimic"}], ids=str)
def test_losses_are_fp32_behind_bf16_towers(switches: dict[str, Any]) -> None:
    model = small(**switches)
    batch = [tiny_inputs(model.encoder, 6, seed) for seed in (1, 2)]
    exact = model(*batch, GOLD)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.features(batch[0]).image_global.dtype == torch.bfloat16
        losses = model(*batch, GOLD)
    assert {name: value.dtype for name, value in losses.items()} == dict.fromkeys(exact, torch.float32)
    losses["total"].backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    for name, value in losses.items():
        # bf16 rounds the towers to three digits; the loss on them is not rounded again
        assert value.item() == pytest.approx(exact[name].item(), rel=0.05)
    assert losses["total"] != exact["total"]


# -- pairs with the same gold -----------------------------------------------------------------------------------------


def others(i: int) -> list[int]:
    """Rows of the batch that are negatives of row i: those of other gold entities."""
    return [j for j in range(len(GOLD)) if GOLD[j] != GOLD[i]]


def log_sum(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).logsumexp(0)


def by_anchor(anchor: Callable[[Tensor, Tensor, int], Tensor], entity: Tensor, mention: Tensor) -> Tensor:
    """Mean over anchors of both sides of a loss of (own side, other side, row)."""
    rows = range(len(entity))
    both = [anchor(entity, mention, i) for i in rows] + [anchor(mention, entity, i) for i in rows]
    return torch.stack(both).mean()


def icl_paper(own: Tensor, other: Tensor, i: int) -> Tensor:
    c = M3ELConfig(beta=0.7, gamma=1.3)
    positive = F.cosine_similarity(own[i], other[i], dim=0) / c.tau
    terms = [positive]
    for j in others(i):
        terms.append(math.log(c.beta) + F.cosine_similarity(own[i], own[j], dim=0) / c.tau)
        terms.append(math.log(c.gamma) + F.cosine_similarity(own[i], other[j], dim=0) / c.tau)
    return log_sum(terms) - positive


def icl_released(own: Tensor, other: Tensor, i: int) -> Tensor:
    c = M3ELConfig(beta=0.7, gamma=1.3)
    positive = c.gamma * F.cosine_similarity(own[i], other[i], dim=0) / c.tau
    terms = [positive, torch.zeros_like(positive)]  # the anchor's self term is the logit 0
    for j in others(i):
        terms.append(c.beta * F.cosine_similarity(own[i], own[j], dim=0) / c.tau)
        terms.append(c.gamma * F.cosine_similarity(own[i], other[j], dim=0) / c.tau)
    return log_sum(terms) - positive


def infonce(own: Tensor, other: Tensor, i: int) -> Tensor:
    return log_sum([own[i] @ other[j] for j in [i, *others(i)]]) - own[i] @ other[i]


def mclet(own: Tensor, other: Tensor, i: int) -> Tensor:
    tau = 0.6
    terms = [own[i] @ other[j] / tau for j in [i, *others(i)]] + [own[i] @ own[j] / tau for j in others(i)]
    return log_sum(terms) - own[i] @ other[i] / tau


CONTRASTIVE: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor, int], Tensor]]] = {
    "icl-paper": ({"icl_variant": "paper", "beta": 0.7, "gamma": 1.3}, icl_paper),
    "icl-released": ({"icl_variant": "released", "beta": 0.7, "gamma": 1.3}, icl_released),
    "infonce": ({"contrastive": "infonce"}, infonce),
    "mclet": ({"contrastive": "mclet"}, mclet),
}


def fp64_features(model: MELModel, seed: int) -> Features:
    with torch.no_grad():
        found = model.features(tiny_inputs(model.encoder, len(GOLD), seed))
    assert found.image_index is not None
    images = (found.image_global[found.image_index], found.image_local[found.image_index])
    return Features(*(value.double() for value in (found.text_global, found.text_local, *images)))


@pytest.mark.parametrize(("switches", "anchor"), CONTRASTIVE.values(), ids=CONTRASTIVE)
def test_contrastive_losses_without_the_pairs_of_one_gold(
    switches: dict[str, Any], anchor: Callable[[Tensor, Tensor, int], Tensor]
) -> None:
    model = small(**switches, mask_duplicates=True).double()
    entity, mention = fp64_features(model, 1), fp64_features(model, 2)
    found = model.losses(entity, mention, GOLD)["contrastive"]
    head = model.contrastive
    assert isinstance(head, ContrastiveLoss)
    parts = []
    for name in ("text", "image"):
        pair = [getattr(side, f"{name}_global") for side in (entity, mention)]
        projection = getattr(head, f"{name}_head")
        if projection is not None:
            pair = [projection(value) for value in pair]
        parts.append(by_anchor(anchor, *pair))
    torch.testing.assert_close(found, torch.stack(parts).mean())


@pytest.mark.parametrize("switches", [switches for switches, _ in CONTRASTIVE.values()], ids=CONTRASTIVE)
def test_a_process_of_several_takes_its_own_anchors(switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the second of two processes, whose neighbour has the same batch: rows 6 to 11 against all twelve."""
    model = small(**switches, mask_duplicates=True).double()
    monkeypatch.setattr("m3el_fast.models.world", lambda: (1, 2))
    monkeypatch.setattr("m3el_fast.models.gather_rows", lambda tensor: torch.cat([tensor, tensor]))
    seen = []
    for name in ("icl_loss", "infonce_loss", "mclet_loss"):
        loss = getattr(ops, name)

        def spy(*features: Tensor, loss: Callable[..., Tensor] = loss, **options: Any) -> Tensor:
            seen.append((len(features[0]), options["anchors"]))
            return loss(*features, **options)

        monkeypatch.setattr(ops, name, spy)
    model.losses(fp64_features(model, 1), fp64_features(model, 2), GOLD)
    assert seen == [(12, range(6, 12))] * 2


@pytest.mark.parametrize("switches", [{}, {"union": "released"}, {"type": "mimic"}], ids=str)
def test_cross_entropies_without_the_pairs_of_one_gold(switches: dict[str, Any]) -> None:
    model = small(**switches, mask_duplicates=True).double()
    entity, mention = fp64_features(model, 1), fp64_features(model, 2)
    scores, losses = model.matcher(entity, mention), model.losses(entity, mention, GOLD)
    names = losses.keys() - {"total", "contrastive"}
    assert names >= {"union", "text", "image"}
    for name in names:
        score = getattr(scores, name)
        rows = [log_sum([score[i, j] for j in [i, *others(i)]]) - score[i, i] for i in range(len(GOLD))]
        torch.testing.assert_close(losses[name], torch.stack(rows).mean())


@pytest.mark.parametrize(
    "switches", [{}, *(switches for switches, _ in CONTRASTIVE.values()), {"type": "mimic"}], ids=str
)
def test_masking_changes_nothing_where_no_gold_repeats(switches: dict[str, Any]) -> None:
    plain, masked = small(**switches), small(**switches, mask_duplicates=True)
    batch = [tiny_inputs(plain.encoder, 6, seed) for seed in (1, 2)]
    for gold, changes in ((torch.arange(6), False), (GOLD, True)):
        one, other = plain(*batch, gold), masked(*batch, gold)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) != changes for name in one)
