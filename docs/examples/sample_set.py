"""What the reranking examples run on: a model, and test mentions of the generated sample set with candidates."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from m3el_fast.config import DataConfig, RunConfig
from m3el_fast.data.layout import Entity, Mention, read_kb, read_mentions
from m3el_fast.data.sample import write_sample
from m3el_fast.models import MELModel, load_model
from m3el_fast.train import make_model

_temporary = tempfile.TemporaryDirectory(prefix="m3el-sample-")  # removed at the end


def load(checkpoint: str | None, count: int) -> tuple[MELModel, list[tuple[Mention, list[Entity]]]]:
    """A checkpoint's model, or an untrained one, and ``count`` mentions, each with the entities that share its name."""
    if checkpoint is not None:
        model = load_model(checkpoint)
        folder = Path(str(model.config.data.dir))
    else:
        print("no checkpoint given: an untrained model, whose order means nothing\n")
        folder = write_sample(Path(_temporary.name) / "sample")
        torch.manual_seed(0)
        model = make_model(RunConfig.load("sample").model_copy(update={"data": DataConfig(dir=str(folder))}))
    entities = read_kb(folder, "attr").entities
    mentions = [mention for mention in read_mentions(folder, "test") if mention.answer is not None][:count]
    return model, [(mention, [e for e in entities if _share_a_name(mention, e)]) for mention in mentions]


def query(mention: Mention) -> dict[str, object]:
    """A mention as the adapters' query."""
    return {"text": mention.sentence, "mention": mention.name, "image": mention.image}


def document(entity: Entity) -> dict[str, object]:
    """An entity as the adapters' document."""
    return {"text": entity.attr, "name": entity.name, "image": entity.images[0] if entity.images else None}


def _share_a_name(mention: Mention, entity: Entity) -> bool:
    return entity.name in mention.name or mention.name in entity.name
