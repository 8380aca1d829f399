"""The model card of a checkpoint: metadata that the Hub reads and text for people, in ``README.md``."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from m3el_fast.config import M3ELConfig, RunConfig
from m3el_fast.hub_results import Results
from m3el_fast.metrics import HITS, Metrics

_TEMPLATE = Path(__file__).parent / "hub_card.md"
_MARK = re.compile(rb"\n*<!-- written by m3el_fast; once changed, this file is kept \(([0-9a-f]{32})\) -->\s*$")


def make_card(
    config: RunConfig,
    *,
    name: str,
    results: Results | None,
    entities: int | None,
    metadata: Mapping[str, Any],
) -> ModelCard:
    """The card of a checkpoint.

    Args:
        config: of the run; :func:`published` before it goes in.
        name: of the folder or repository, as ``from_pretrained`` takes it.
        results: what was measured, None = nothing.
        entities: in the index that comes with the checkpoint, None = there is none.
        metadata: fields of :class:`ModelCardData` that are added or replaced: ``license``, ``language``, ``datasets``.
    """
    config = published(config)
    fields: dict[str, Any] = {"library_name": "m3el_fast", "tags": ["entity-linking", config.model.type, "multimodal"]}
    towers = [tower for tower in (config.encoder.pretrained, config.encoder.text, config.encoder.vision) if tower]
    bases = [tower for tower in towers if not _is_folder(tower) and "/" in tower]
    if bases:
        fields["base_model"] = bases if len(bases) > 1 else bases[0]
    title = " ".join(name.rsplit("/", 1)[-1].split())
    if results is not None:
        fields |= {"metrics": ["mrr"], "model_name": title, "eval_results": _eval_results(results)}
    card = ModelCard.from_template(
        ModelCardData(**{**fields, **metadata}),
        template_path=str(_TEMPLATE),
        title=title,
        name=name,
        shell_name=shlex.quote(name),
        model=config.model.type,
        config=config,
        keys=_key_settings(config),
        yaml=config.dump(),
        towers=towers,
        results=results,
        hits=HITS if results is None else sorted({k for m in results.splits.values() for k in m.hits}),
        entities=entities,
    )
    text = str(card).rstrip()
    mark = f"<!-- written by m3el_fast; once changed, this file is kept ({_digest(text.encode())}) -->"
    return ModelCard(f"{text}\n\n{mark}\n")


def edited(card: bytes | None) -> bytes | None:
    """A card that was changed after :func:`make_card` wrote it, or that it never wrote; else None."""
    if card is None:
        return None
    mark = _MARK.search(card)
    return None if mark and mark[1].decode() == _digest(card[: mark.start()]) else card


def published(config: RunConfig) -> RunConfig:
    """The configuration without the folders of this machine: towers by their folders' names, no data folder."""
    names = {key: getattr(config.encoder, key) for key in ("pretrained", "text", "vision")}
    changes: dict[str, Any] = {key: Path(name).name for key, name in names.items() if name and _is_folder(name)}
    scratch = config.encoder.scratch
    if scratch is not None and scratch.tokenizer is not None:
        changes["scratch"] = scratch.model_copy(update={"tokenizer": Path(scratch.tokenizer).name})
    encoder = config.encoder.model_copy(update=changes)
    return config.model_copy(update={"encoder": encoder, "data": config.data.model_copy(update={"dir": None})})


def published_towers(described: str) -> str:
    """``towers.json`` without the places that the towers were loaded from, which nothing reads."""

    def without_place(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, "_name_or_path": ""} if "_name_or_path" in part else part

    return json.dumps(json.loads(described, object_hook=without_place), indent=2) + "\n"


def _is_folder(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).is_dir()


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text.replace(b"\r\n", b"\n").rstrip(), digest_size=16).hexdigest()


def _eval_results(results: Results) -> list[EvalResult]:
    """One entry a split and metric, for the Hub's list of results."""
    return [
        EvalResult(
            task_type="entity-linking",
            task_name="Multimodal entity linking",
            dataset_type=re.sub(r"[^\w.-]+", "-", results.data, flags=re.ASCII).lower(),  # the Hub's pattern
            dataset_name=results.data,
            dataset_split=split,
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for split, metrics in results.splits.items()
        for kind, title, value in _values(metrics)
    ]


def _values(metrics: Metrics) -> list[tuple[str, str, float]]:
    hits = [(f"hits@{k}", f"Hits@{k}", value) for k, value in metrics.hits.items()]
    return [*hits, ("mrr", "MRR", metrics.mrr)]


def _key_settings(config: RunConfig) -> dict[str, object]:
    """What a reader compares first."""
    settings: dict[str, object] = {"hidden size": config.model.d}
    if isinstance(config.model, M3ELConfig):
        form = config.model.cross_form if config.model.cross else "off"
        settings |= {"cross-modal matching": form, "contrastive loss": config.model.contrastive}
    encoder, train = config.encoder, config.train
    settings |= {"text tokens": encoder.max_text_tokens, "visual feature size": encoder.dv}
    settings |= {"batch size": train.batch_size, "learning rate": train.lr, "epochs, at most": train.epochs}
    return settings | {"towers": "frozen" if train.freeze_encoder else "trained", "seed": train.seed}
