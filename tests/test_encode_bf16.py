"""What bf16 towers cost: the error of an encoded KB, and the ranks of a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from m3el_fast.dataset import load_dataset
from m3el_fast.encode import KBEncoder, Precision
from m3el_fast.evaluate import evaluate
from m3el_fast.features import Vectors
from m3el_fast.index import EntityIndex
from m3el_fast.models import load_model
from m3el_fast.scorer import Scorer
from tiny import tiny_config, tiny_model, write_tiny
from trained import Trained, trained_in

DEEP = {"text_width": 128, "text_layers": 12, "text_heads": 2, "vision_width": 128, "vision_layers": 12}
DEEP |= {"vision_heads": 2, "image_size": 64, "patch_size": 16, "projection_dim": 128}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield from trained_in(tmp_path_factory.mktemp("trained"))


def test_error_of_features(tmp_path: Path) -> None:
    """Towers as deep as ViT-B/32's, with CLIP's initialisation.

    bf16 rounds the operands and the result of a product to 8 bits, by 0.1% on average; on an fp32 residual stream a
    dozen layers add up to 0.2 to 0.5% of a feature (measured here, at ViT-B/32's sizes and on the trained sample), of
    the size of what bf16 storage costs the index's Q.
    """
    folder = write_tiny(tmp_path / "data")
    config = tiny_config(folder)
    scratch = config.encoder.scratch
    assert scratch is not None
    wide = config.encoder.model_copy(update={"scratch": scratch.model_copy(update=DEEP), "max_text_tokens": 40})
    model = tiny_model(config.model_copy(update={"encoder": wide}))
    source = load_dataset(config.data, folder, model.encoder, ["test"], progress=False).entities
    found: dict[Precision, Vectors] = {}
    for precision in ("fp32", "bf16"):
        encoder = KBEncoder(model, source, precision=precision)
        keys, image_of = source.image_key.unique(return_inverse=True)
        [(_, visual, context)] = encoder.images(keys)
        [(_, item)] = encoder.items(
            torch.arange(12), image_of, lambda places, context=context: {k: v[places] for k, v in context.items()}
        )
        found[precision] = item | {f"visual.{name}": value for name, value in visual.items()}
    for name, exact in found["fp32"].items():
        close = found["bf16"][name]
        assert close.dtype == torch.float32
        assert 1e-4 < float((close - exact).norm() / exact.norm()) < 0.01, name


def test_ranks_of_a_trained_model(trained: Trained) -> None:
    """No more may change than the rank of one of the 24 mentions: where two scores lie within 1%, either may win."""
    model = load_model(trained.checkpoint)
    data = load_dataset(model.config.data, trained.data, model.encoder, ["test"], progress=False)
    exact, close = (
        evaluate(
            Scorer(model, EntityIndex.build(model, data.entities, precision=precision, progress=False)),
            data.splits["test"],
            progress=False,
        )["union"]
        for precision in ("fp32", "bf16")
    )
    assert exact.hits[1] > 0.6  # trained: 0.29 before
    assert abs(close.hits[1] - exact.hits[1]) <= 1 / 24
    assert abs(close.mrr - exact.mrr) <= 1 / 48
