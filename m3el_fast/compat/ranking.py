"""All entities ranked for each mention, in place of the released evaluation's loop over chunks (spec section 6)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Self

from m3el_fast.compat.feature_index import index_features
from m3el_fast.compat.inputs import check, dims_of, without_autocast
from m3el_fast.compat.matchers import ReleasedMatcher
from m3el_fast.errors import InputError
from m3el_fast.features import Features
from m3el_fast.index.shards import raw_bytes
from m3el_fast.matching import Matcher
from m3el_fast.models import MELModel
from m3el_fast.scorer import Scorer, TopK

_BATCH = 128  # entities whose side is computed at a time

Block = Sequence[Tensor]
"""What the released encoder returns for n items, in its order: ``text_embeds`` [n, dt], ``image_embeds`` [n, dv],
``text_seq_tokens`` [n, Lt, dt], ``image_patch_tokens`` [n, Lv, dv]."""

_NAMES = ("text_embeds", "image_embeds", "text_seq_tokens", "image_patch_tokens")


@dataclass(frozen=True)
class Ranking:
    """All entities ranked for each of M mentions; tensors are on the CPU.

    Attributes:
        rank: [M] fp64, 1 + entities that score above the gold + half of the others level with it.
        components: the same by the scores ``text``, ``image`` and ``cross`` alone, by name.
        best: the k best entities of each mention, where asked for: ``best.rows`` [M, k] and ``best.scores``, a dict.
        scores: [M, E] fp32, where asked for.
    """

    rank: Tensor
    components: dict[str, Tensor]
    best: TopK | None
    scores: Tensor | None


class PreparedEntities:
    """All that ranking needs of the entities, computed once for many calls of :func:`rank_all`: it lies in temporary
    files (``TMPDIR``), which end with this object or with its ``with`` block. At the papers' sizes M3EL takes 18 kB an
    entity and 20 kB a distinct image, MIMIC 18 kB and 2 kB, where features take 104 kB.

    It is of the weights that the matcher has now.

    Args:
        matcher, entities, bidirection, progress: as in :func:`rank_all`.

    Raises:
        InputError: as :func:`rank_all`.
    """

    def __init__(
        self,
        matcher: ReleasedMatcher,
        entities: Block | Iterable[Block],
        *,
        bidirection: bool = False,
        progress: bool = True,
    ) -> None:
        self.bidirection = bidirection
        self._weights = _digest(matcher.form(bidirection))
        self.form = copy.deepcopy(matcher.form(bidirection)).float().eval()
        blocks, total = _blocks(entities, self.form)
        self._index = index_features(self.form, blocks, total, progress)
        # of a model a scorer reads the matcher and its device
        self.scorer = Scorer(cast(MELModel, _Bare(self.form)), self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._index.remove_files()

    def check(self, matcher: ReleasedMatcher, bidirection: bool) -> None:
        """Raises InputError where ``matcher`` has other weights now, or the form is another."""
        if bidirection != self.bidirection:
            raise InputError("bidirection", f"{self.bidirection}, as when the entities were prepared", bidirection)
        if _digest(matcher.form(bidirection)) != self._weights:
            hint = "Prepare them again after training"
            raise InputError("entities", "ones prepared with the matcher's weights", "other weights", hint)


def rank_all(
    matcher: ReleasedMatcher,
    mentions: Block,
    entities: PreparedEntities | Block | Iterable[Block],
    answer: Tensor | Sequence[int],
    *,
    bidirection: bool = False,
    k: int | None = None,
    scores: bool = False,
    progress: bool = True,
) -> Ranking:
    """Rank all E entities for each of M mentions, exactly, in place of the released loop: for each chunk of entities
    the matcher, then a double argsort of the concatenated scores.

    Scores are those of the matcher's forward pass, in fp32 whatever the weights are in. The scan is that of
    :class:`m3el_fast.scorer.Scorer`; memory does not grow with M x E (but for ``scores``), nor with E where entities
    come in blocks. Ties differ from the released loop, whose argsort orders equal scores by chance: here they share
    their rank (spec section 6), and entities with equal features have equal scores.

    Args:
        matcher: :class:`M3ELMatcher` or :class:`MIMICMatcher`.
        mentions: four tensors of M mentions, what the released encoder returns: text_embeds [M, dt], image_embeds
            [M, dv], text_seq_tokens [M, Lt, dt], image_patch_tokens [M, Lv, dv], on any device.
        entities: the entities' four tensors; or an iterable of such blocks, such as a generator that encodes them; or
            :class:`PreparedEntities`, so that several calls share the entities' side.
        answer: [M] the gold of each mention, its row among the entities.
        bidirection: which of M3EL's forms scores. The released evaluation always takes the T2V-only one, False, also
            where the bidirectional one was trained (WikiDiverse) and this one's weights never were: give what training
            gave to ``forward``.
        k: also find the k best entities.
        scores: also return the matrix of all scores.
        progress: show progress where the work takes more than two seconds.

    Raises:
        InputError: a shape does not match, a feature is not finite, an answer is no row of the entities, k is not in
            1..E, or prepared entities are of other weights or of another form.
    """
    gold = _rows(answer)
    count = _check("mentions", mentions, matcher.form(bidirection))
    _check_finite(mentions)
    if len(gold) != count:
        raise InputError("answer", f"one row for each of {count} mentions", len(gold))
    _check_rows(gold, k, _number(entities))
    if not isinstance(entities, PreparedEntities):
        with PreparedEntities(matcher, entities, bidirection=bidirection, progress=progress) as own:
            return rank_all(
                matcher, mentions, own, answer, bidirection=bidirection, k=k, scores=scores, progress=progress
            )
    entities.check(matcher, bidirection)
    form, scorer = entities.form, entities.scorer
    ranks: list[dict[str, Tensor]] = []
    best: list[TopK] = []
    matrix: list[Tensor] = []
    with tqdm(total=count, desc="ranking", unit="mention", disable=not progress, delay=2, leave=False) as bar:
        for start in range(0, max(1, count), scorer.batch):
            rows = slice(start, start + scorer.batch)
            part = _features(mentions, rows, form)
            with torch.inference_mode(), without_autocast(part.text_global.device):
                side = form.mention_side(part)
                if k is None:
                    ranks.append(scorer.ranks(side, gold[rows]))
                else:
                    ranked, top = scorer.ranks_and_topk(side, gold[rows], k)
                    ranks.append(ranked)
                    best.append(top)
                if scores:
                    matrix.append(scorer.scores(side))
            bar.update(len(part))
    found = {name: torch.cat([part[name] for part in ranks]) for name in ranks[0]}
    whole = TopK.joined(best) if best else None
    return Ranking(found.pop("union"), found, whole, torch.cat(matrix) if matrix else None)


@dataclass(frozen=True)
class _Bare:
    """A matcher where a scorer expects a model."""

    matcher: Matcher

    @property
    def device(self) -> torch.device:
        return self.matcher.text_global_norm.weight.device


def _is_block(entities: object) -> bool:
    return isinstance(entities, (list, tuple)) and len(entities) > 0 and isinstance(entities[0], Tensor)


def _number(entities: PreparedEntities | Block | Iterable[Block]) -> float:
    """How many there are; infinity where only the end of a stream will tell, or :func:`index_features` refuses none."""
    if isinstance(entities, PreparedEntities):
        return len(entities)
    return (len(cast(Block, entities)[0]) if _is_block(entities) else 0) or math.inf


def _blocks(entities: Block | Iterable[Block], form: Matcher) -> tuple[Iterator[Features], int | None]:
    """Features of the entities in pieces of at most ``_BATCH``, and their number where it is known."""
    if _is_block(entities):
        whole = cast(Block, entities)
        total = _check("entities", whole, form)
        return _pieces("entities", whole, form), total
    blocks = cast(Iterable[Block], entities)
    return (piece for i, block in enumerate(blocks, 1) for piece in _pieces(f"entities, block {i}", block, form)), None


def _pieces(where: str, block: Block, form: Matcher) -> Iterator[Features]:
    for start in range(0, _check(where, block, form), _BATCH):
        yield _features(block, slice(start, start + _BATCH), form)


def _check(where: str, block: Block, form: Matcher) -> int:
    """The number of items of a block. Raises InputError."""
    if len(block) != len(_NAMES) or not all(isinstance(part, Tensor) for part in block):
        kinds = ", ".join(sorted({type(part).__name__ for part in block}))
        raise InputError(where, f"four tensors, {', '.join(_NAMES)}", f"{len(block)} of {kinds}")
    text, image, text_tokens, image_tokens = zip((f"{where}, {name}" for name in _NAMES), block, strict=True)
    return check(dict([text, text_tokens, image, image_tokens]), dims_of(form))


def _features(block: Block, rows: slice, form: Matcher) -> Features:
    """Those of ``rows``, on the matcher's device, in fp32."""
    device = form.text_global_norm.weight.device
    text, image, text_tokens, image_tokens = (part[rows].detach().to(device, torch.float32) for part in block)
    return Features(text, text_tokens, image, image_tokens)


def _check_finite(mentions: Block) -> None:
    for name, part in zip(_NAMES, mentions, strict=True):
        wrong = ~part.flatten(1).isfinite().all(dim=1)
        if wrong.any():
            where = f"mentions, {name}, mention {int(wrong.nonzero()[0]) + 1}"
            raise InputError(where, "finite features", "NaN or infinity")


def _rows(answer: Tensor | Sequence[int]) -> Tensor:
    """[M] int64 on the CPU."""
    try:
        rows = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError) as error:  # of texts or None
        raise InputError("answer", "a vector of whole numbers", error) from None
    whole = not rows.dtype.is_floating_point and rows.dtype != torch.bool
    if rows.dim() != 1 or (len(rows) and not whole):  # an empty list has no dtype
        raise InputError("answer", "a vector of whole numbers", f"{rows.dtype} of shape {list(rows.shape)}")
    return rows.cpu().long()


def _check_rows(gold: Tensor, k: int | None, entities: float) -> None:
    """``entities``: their number, infinity where it is not yet known."""
    outside = ((gold < 0) | (gold >= entities)).nonzero()[:, 0].tolist()
    if outside:
        where = f"answer, mention {outside[0] + 1}"
        most = f"0 to {entities - 1}" if math.isfinite(entities) else "at least 0"
        raise InputError(where, f"a row of the entities, {most}", int(gold[outside[0]]))
    if k is not None and not 1 <= k <= entities:
        most = f"1 to {entities} (the number of entities)" if math.isfinite(entities) else "at least 1"
        raise InputError("k", most, k)


def _digest(form: Matcher) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(form.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor.cpu()))
    return digest.digest()
