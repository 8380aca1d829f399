"""The drop-in matchers against the released classes: numbers, gradients, names, initial weights, refusals."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compat.released_args import PAPER, SMALL, encoded, forward_order, m3el_args, mimic_args
from golden import Golden, close
from m3el_fast.compat import M3ELMatcher, MIMICMatcher, load_released
from m3el_fast.errors import InputError
from m3el_fast.features import Features

INPUTS = [
    f"{role}_{name}"
    for kind in ("text", "image")
    for role in ("entity", "mention")
    for name in (f"{kind}_cls", f"{kind}_tokens")
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
FORMS = pytest.mark.parametrize("bidirection", [True, False], ids=["bidirectional", "t2v-only"])


def inputs(golden: Golden, dtype: torch.dtype, grad: bool = False) -> dict[str, Tensor]:
    return {name: golden[f"in.{name}"].to(dtype).requires_grad_(grad) for name in INPUTS}


def released_m3el(golden: Golden, dtype: torch.dtype, sizes: dict[str, int] = SMALL) -> M3ELMatcher:
    matcher = M3ELMatcher(m3el_args(sizes)).to(dtype)
    matcher.load_state_dict(golden.weights(dtype), strict=True)
    return matcher


@pytest.mark.parametrize("matcher", [M3ELMatcher, MIMICMatcher])
def test_the_arguments_are_the_released_ones(matcher: type[nn.Module]) -> None:
    names = list(inspect.signature(matcher.forward).parameters)
    flags = ["train_flag", "bidirection"] if matcher is M3ELMatcher else []
    assert names == ["self", *INPUTS, *flags]
    assert list(inspect.signature(matcher).parameters) == ["args"]


@DTYPES
@FORMS
@pytest.mark.parametrize(("size", "sizes"), [("small", SMALL), ("paper", PAPER)])
def test_m3el_scores(shared: Path, size: str, sizes: dict[str, int], bidirection: bool, dtype: torch.dtype) -> None:
    golden = Golden(shared, f"m3el_matcher_{size}")
    matcher = released_m3el(golden, dtype, sizes)
    score, parts, loss = matcher(*inputs(golden, dtype).values(), bidirection=bidirection)
    form = "bi" if bidirection else "uni"
    names = ("text", "image", "text_image", "image_text") if bidirection else ("text", "image", "image_text")
    assert loss is None
    close(score, golden[f"out64.{form}.score"])
    for name, part in zip(names, parts, strict=True):
        close(part, golden[f"out64.{form}.{name}"])


@DTYPES
def test_mimic_scores(shared: Path, dtype: torch.dtype) -> None:
    golden = Golden(shared, "mimic_matcher_small")
    matcher = MIMICMatcher(mimic_args()).to(dtype)
    matcher.load_state_dict(golden.weights(dtype), strict=True)
    score, parts = matcher(**inputs(golden, dtype))
    close(score, golden["out64.score"])
    for name, part in zip(("text", "image", "image_text"), parts, strict=True):
        close(part, golden[f"out64.{name}"])


@DTYPES
@FORMS
def test_training_step(shared: Path, bidirection: bool, dtype: torch.dtype) -> None:
    golden = Golden(shared, "m3el_train_small")
    form = "bi" if bidirection else "uni"
    matcher = released_m3el(golden, dtype)
    given = inputs(golden, dtype, grad=True)
    score, parts, cl_loss = matcher(**given, train_flag=True, bidirection=bidirection)
    labels = torch.arange(len(score))
    losses = [nn.functional.cross_entropy(one, labels) for one in (score, *parts)]
    close(torch.stack(losses), golden[f"out64.{form}.ce"])
    close(cl_loss, golden[f"out64.{form}.cl_loss"])
    assert cl_loss.dtype == dtype
    (sum(losses) + cl_loss).backward()
    for name, tensor in given.items():
        close(tensor.grad, golden[f"grad64.{form}.in.{name}"])
    prefix = f"grad64.{form}.w."
    own = {name: p.grad for name, p in matcher.named_parameters() if p.grad is not None}
    assert own.keys() == {name.removeprefix(prefix) for name in golden.tensors if name.startswith(prefix)}
    for name, gradient in own.items():
        close(gradient, golden[prefix + name])


@pytest.mark.parametrize("name", ["m3el_matcher_small", "mimic_matcher_small"])
def test_names_are_the_released_ones(shared: Path, name: str) -> None:
    weights = Golden(shared, name).weights(torch.float32)
    matcher = M3ELMatcher(m3el_args()) if name.startswith("m3el") else MIMICMatcher(mimic_args())
    matcher.load_state_dict(weights)
    state = matcher.state_dict()
    assert state.keys() == weights.keys() == dict(matcher.named_parameters()).keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    frozen = {key for key, p in matcher.named_parameters() if not p.requires_grad}
    assert frozen == {key for key in weights if key.endswith("multi_head_module.weight")}


@pytest.mark.parametrize("bidirection", [True, False])
def test_the_state_is_a_released_checkpoint(bidirection: bool) -> None:
    matcher = M3ELMatcher(m3el_args())
    entities, mentions = encoded(4, 0), encoded(3, 1)
    ours = load_released(matcher.state_dict(), bidirection)
    (et, ei, etl, eil), (mt, mi, mtl, mil) = entities, mentions
    expected = ours(Features(et, etl, ei, eil), Features(mt, mtl, mi, mil)).union
    torch.testing.assert_close(matcher(*forward_order(entities, mentions), bidirection=bidirection)[0], expected)


def _released_layers(first_release: bool) -> list[nn.Module]:
    """The layers with random weights of the released M3EL matcher, in the order of its constructor."""
    dt, dv, d = 32, 16, 12

    def mclet(width: int) -> list[nn.Module]:
        return [nn.Linear(width, width), nn.Linear(width, width)]

    cross = [(dt, d), (dv, d), (d, 1), (d, d)]
    return [
        *(nn.Linear(width, d) for width in (dt, dv) for _ in range(4)),
        *(nn.Linear(*size) for size in (*cross, (d, d))),
        *mclet(d),
        *(nn.Linear(*size) for size in cross),
        *mclet(d),
        *mclet(d),
        nn.Linear(dt, d),
        nn.Linear(dv, d),
        *mclet(d if first_release else dt),
        *mclet(d),
    ]


@pytest.mark.parametrize("first_release", [True, False])
def test_a_seed_gives_the_released_initial_weights(first_release: bool) -> None:
    torch.manual_seed(43)
    expected = _released_layers(first_release)
    torch.manual_seed(43)
    matcher = M3ELMatcher(m3el_args() if first_release else m3el_args(with_cl_loss=1, loss_type=0))
    # the released constructor makes the matcher's LayerNorms, which draw nothing, in between
    own = [module for module in matcher.modules() if isinstance(module, nn.Linear)]
    assert len(own) == len(expected)
    for ours, theirs in zip(own, expected, strict=True):
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


def test_state_dicts_of_both_releases_load() -> None:
    first, second = M3ELMatcher(m3el_args()), M3ELMatcher(m3el_args(with_cl_loss=1, loss_type=0))
    trained = M3ELMatcher(m3el_args(with_cl_loss=1, loss_type=2, IIMM_hidden_dim=16))
    assert first.mclet_text_loss.embedding_dim != second.mclet_text_loss.embedding_dim
    for source, target in ((first, second), (second, first)):
        target = copy.deepcopy(target)
        target.load_state_dict(source.state_dict())
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    with pytest.raises(RuntimeError, match="size mismatch for mclet_text_loss"):
        trained.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    "remake", [copy.deepcopy, lambda m: _through_a_file(m), lambda m: m.half().float()], ids=["copy", "pickle", "cast"]
)
def test_forms_stay_on_the_layers(remake: Callable[[M3ELMatcher], M3ELMatcher]) -> None:
    torch.manual_seed(0)
    matcher = remake(M3ELMatcher(m3el_args()))
    given = forward_order(encoded(3, 0), encoded(2, 1))
    for name, layers in (("cmm", [False]), ("cmmb", [True]), ("timm", [False, True])):
        for bidirection in (False, True):
            before = matcher(*given, bidirection=bidirection)[0]
            with torch.no_grad():
                matcher.get_submodule(name).get_parameter(
                    "fc_value.weight" if name == "timm" else "multi_head_module.weight"
                ).mul_(2)
            changed = not torch.equal(matcher(*given, bidirection=bidirection)[0], before)
            assert changed == (bidirection in layers), (name, bidirection)


def _through_a_file(matcher: M3ELMatcher) -> M3ELMatcher:
    file = io.BytesIO()
    torch.save(matcher, file)
    file.seek(0)
    loaded: M3ELMatcher = torch.load(file, weights_only=False)
    return loaded


@FORMS
@pytest.mark.parametrize(("entities", "mentions"), [(1, 1), (1, 3), (7, 1)])
def test_one_row(bidirection: bool, entities: int, mentions: int) -> None:
    torch.manual_seed(0)
    matcher = M3ELMatcher(m3el_args()).double()
    left, right = ([t.double() for t in encoded(7, seed)] for seed in (0, 1))
    whole, parts, _ = matcher(*forward_order(left, right), bidirection=bidirection)
    few = [t[:entities] for t in left], [t[:mentions] for t in right]
    score, own, _ = matcher(*forward_order(*few), bidirection=bidirection)
    torch.testing.assert_close(score, whole[:mentions, :entities])
    for one, part in zip(own, parts, strict=True):
        torch.testing.assert_close(one, part[:mentions, :entities])


def test_hidden_sizes_may_differ() -> None:
    torch.manual_seed(0)
    matcher = M3ELMatcher(m3el_args(TIMM_hidden_dim=8, IIMM_hidden_dim=6, CMM_hidden_dim=10, head_num=3))
    score, parts, _ = matcher(*forward_order(encoded(4, 0), encoded(3, 1)), bidirection=True)
    torch.testing.assert_close(score, sum(parts) / 4)
    mimic = MIMICMatcher(mimic_args(TGLU_hidden_dim=8, IDLU_hidden_dim=6, CMFU_hidden_dim=10))
    score, three = mimic(*forward_order(encoded(4, 0), encoded(3, 1)))
    torch.testing.assert_close(score, sum(three) / 3)


@pytest.mark.parametrize("loss_type", [0, 1, 2])
def test_loss_types(loss_type: int) -> None:
    torch.manual_seed(0)
    matcher = M3ELMatcher(m3el_args(with_cl_loss=1, loss_type=loss_type, IIMM_hidden_dim=16))
    entities, mentions = encoded(6, 0), encoded(6, 1)
    loss = matcher(*forward_order(entities, mentions), train_flag=True)[2]
    heads = [
        (matcher.weight_cl_loss, matcher.weight_cl_loss),
        (matcher.infonce_loss, matcher.infonce_loss),
        (matcher.mclet_text_loss, matcher.mclet_image_loss),
    ][loss_type]
    expected = (heads[0](entities[0], mentions[0]) + heads[1](entities[1], mentions[1])) / 2
    torch.testing.assert_close(loss, expected)
    without = M3ELMatcher(m3el_args(with_cl_loss=0, loss_type=loss_type, IIMM_hidden_dim=16))
    assert without(*forward_order(entities, mentions), train_flag=True)[2] is None


@pytest.mark.parametrize(
    "matcher",
    [M3ELMatcher(m3el_args(with_cl_loss=1, loss_type=2, IIMM_hidden_dim=16)), MIMICMatcher(mimic_args())],
    ids=["m3el", "mimic"],
)
def test_autocast_keeps_the_precision_of_the_weights(matcher: nn.Module) -> None:
    given = [t.bfloat16() for t in forward_order(encoded(4, 0), encoded(4, 1))]
    flags = {"train_flag": True} if isinstance(matcher, M3ELMatcher) else {}
    expected = matcher(*(t.float() for t in given), **flags)
    with torch.autocast("cpu", torch.bfloat16):
        found = matcher(*given, **flags)
    assert torch.equal(found[0], expected[0])
    if flags:
        assert torch.equal(found[2], expected[2])


def test_omegaconf() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    model = vars(m3el_args().model)
    torch.manual_seed(0)
    matcher = M3ELMatcher(omegaconf.OmegaConf.create({"model": model}))
    torch.manual_seed(0)
    same = M3ELMatcher(m3el_args())
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in matcher.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dv": None}, r"args.model.dv: expected a value, got none"),
        ({"dt": 31}, r"args.model.dt: expected input_hidden_dim, 32: the same layers read both, got 31"),
        ({"CMM_hidden_dim": "12"}, r"args.model.CMM_hidden_dim: expected a whole number of at least 1, got '12'"),
        ({"head_num": 9}, r"args.model.head_num: expected a whole number in 1..8, got 9"),
        ({"loss_type": 2}, r"args.model.IIMM_hidden_dim: expected dv, 16: the same layers read both, got 12"),
        ({"loss_type": 3}, r"args.model.loss_type: expected a whole number in 0..2, got 3"),
        ({"weight": "x"}, r"args.model.weight: expected a number, got 'x'"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        M3ELMatcher(m3el_args(**settings))


def test_args_without_a_model() -> None:
    with pytest.raises(InputError, match=r"args: expected an object with the attribute model, got dict"):
        MIMICMatcher({})


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(4, 31), r"entity_text_cls: expected shape \[n, 32\], got \[4, 31\]"),
        (1, torch.zeros(4, 32), r"entity_text_tokens: expected shape \[4 \(rows of entity_text_cls\), tokens, 32\]"),
        (6, torch.zeros(2, 16), r"mention_image_cls: expected shape \[3 \(rows of mention_text_cls\), 16\]"),
    ],
)
def test_a_wrong_shape_is_named(place: int, wrong: Tensor, message: str) -> None:
    given = forward_order(encoded(4, 0), encoded(3, 1))
    given[place] = wrong
    for matcher in (M3ELMatcher(m3el_args()), MIMICMatcher(mimic_args())):
        with pytest.raises(InputError, match=message):
            matcher(*given)


def test_training_needs_pairs() -> None:
    with pytest.raises(ValueError, match="mention: expected shape"):
        M3ELMatcher(m3el_args())(*forward_order(encoded(4, 0), encoded(3, 1)), train_flag=True)
