"""Whole matchers on Triton's kernels: scores, gradients, and one graph under torch.compile."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from m3el_fast.config import M3ELConfig, MIMICConfig
from m3el_fast.features import FeatureDims, Features
from m3el_fast.matching import Matcher, build_matcher

pytest.importorskip("triton")

DIMS = FeatureDims(text_global=24, text_local=24, image_global=12, image_local=12)
CONFIGS = {
    "M3EL, paper": M3ELConfig.paper().model_copy(update={"d": 16}),
    "M3EL, released, bidirectional": M3ELConfig.released(bidirectional=True).model_copy(update={"d": 16}),
    "M3EL, released, T2V": M3ELConfig.released(bidirectional=False).model_copy(update={"d": 16}),
    "MIMIC": MIMICConfig(d=16),
}


def features(rows: int, seed: int, device: str) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    return Features(drawn(rows, 24), drawn(rows, 7, 24), drawn(rows, 12), drawn(rows, 5, 12))


@pytest.fixture(params=CONFIGS)
def matcher(request: pytest.FixtureRequest, device: str) -> Matcher:
    torch.manual_seed(0)
    return build_matcher(CONFIGS[request.param], DIMS).to(device)


def gradients(matcher: Matcher, union: Tensor) -> list[Tensor]:
    matcher.zero_grad()
    union.square().sum().backward()
    return [p.grad.clone() for p in matcher.parameters() if p.grad is not None]


def test_equals_the_reference(matcher: Matcher, device: str, like_gpu: None) -> None:
    entities, mentions = features(5, 1, device), features(3, 2, device)
    union = matcher(entities, mentions).union
    exact = copy.deepcopy(matcher).double()  # no kernel takes fp64
    wide = [Features(*(t.double() for t in vars(side).values() if t is not None)) for side in (entities, mentions)]
    wanted = exact(*wide).union
    torch.testing.assert_close(union.double(), wanted, rtol=1e-4, atol=1e-4)
    found, reference = gradients(matcher, union), gradients(exact, wanted)
    assert len(found) == len(reference) > 10
    for f, w in zip(found, reference, strict=True):
        torch.testing.assert_close(f.double(), w, rtol=1e-3, atol=1e-3)


def test_is_one_graph(matcher: Matcher, device: str, like_gpu: None) -> None:
    entities, mentions = features(5, 1, device), features(3, 2, device)
    compiled = torch.compile(matcher, fullgraph=True, backend="aot_eager")
    union, wanted = compiled(entities, mentions).union, matcher(entities, mentions).union
    torch.testing.assert_close(union, wanted)
    for f, w in zip(gradients(matcher, union), gradients(matcher, wanted), strict=True):
        torch.testing.assert_close(f, w)
