"""What callers give a scorer, checked: features, candidates, golds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Side

Candidates = Sequence[Sequence[str] | Tensor]


def check_finite(mentions: Side) -> None:
    """Refuse features that are not. Raises InputError."""
    for kind, tensors in (("mention", mentions.item), ("image", mentions.visual)):
        for name, tensor in tensors.items():
            wrong = ~tensor.flatten(1).isfinite().all(dim=1)
            if wrong.any():
                where = f"mentions, {kind} {int(wrong.nonzero()[0]) + 1}"
                raise InputError(where, "finite features", f"NaN or infinity in {name}")


def check_temperatures(temperatures: Sequence[float]) -> tuple[float, ...]:
    """Raises InputError where one is not above 0, or cannot divide in fp32."""
    fp32 = torch.finfo(torch.float32)
    for temperature in temperatures:
        if not fp32.tiny <= temperature <= fp32.max:
            raise InputError("temperatures", "numbers above 0 of fp32's range", temperature)
    return tuple(temperatures)


def check_gold(gold: Tensor, mentions: int, index: EntityIndex) -> None:
    """Refuse golds that are no live rows of the index, or not one for each mention. Raises InputError."""
    if gold.shape != (mentions,):
        raise InputError("gold", f"one row for each of {mentions} mentions", f"shape {tuple(gold.shape)}")
    outside = (gold < 0) | (gold >= index.rows)
    removed = ~index.live[gold.clamp(0, index.rows - 1)]
    for wrong, got in ((outside, "no row of it"), (removed, "a removed entity")):
        if wrong.any():
            place = int(wrong.nonzero()[0])
            expected = f"a row of the index, 0 to {index.rows - 1}"
            raise InputError(f"gold, mention {place + 1}", expected, f"{int(gold[place])}, {got}")


def candidate_rows(candidates: Candidates, mentions: int, index: EntityIndex) -> list[Tensor]:
    """The rows of the candidates, a list for each mention.

    Raises:
        InputError: not one list for each mention, or a candidate is no live entity.
    """
    if len(candidates) != mentions:
        raise InputError("candidates", f"one list of ids for each of {mentions} mentions", f"{len(candidates)}")
    named = [(number, own) for number, own in enumerate(candidates, 1) if not isinstance(own, Tensor)]
    for number, ids in named:
        if isinstance(ids, str) or not all(isinstance(one, str) for one in ids):
            raise InputError(f"candidates, mention {number}", "a list of ids, each a string", repr(ids))
    found = index.find([one for _, ids in named for one in ids]).split([len(ids) for _, ids in named])
    by_id = {number: rows for (number, _), rows in zip(named, found, strict=True)}
    return [_checked(number, own, by_id.get(number), index) for number, own in enumerate(candidates, 1)]


def _checked(number: int, given: Sequence[str] | Tensor, found: Tensor | None, index: EntityIndex) -> Tensor:
    """The rows that a mention's candidates stand for, ``found`` of ids; refused where one is no live entity."""
    if found is None:
        assert isinstance(given, Tensor)
        if given.dtype != torch.int64 or given.dim() != 1:
            got = f"{given.dtype} of shape {tuple(given.shape)}"
            raise InputError(f"candidates, mention {number}", "ids, or rows int64 [C]", got)
        found = given.cpu()
    outside = (found < 0) | (found >= index.rows)
    unknown = outside | ~index.live[found.masked_fill(outside, 0)]
    if unknown.any():
        place = int(unknown.nonzero()[0])
        one = given[place]
        got = repr(one) if isinstance(one, str) else f"row {int(one)}"
        raise InputError(f"candidates, mention {number}", "ids of entities in the index", got)
    return found
