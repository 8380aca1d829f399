"""Synthetic KBs and mentions of paper sizes whose features spread like those of a trained model.

Every row is a function of its number alone (rows of fixed Gaussian tables, looked up by hash and summed), so that a KB
of any size can be streamed in any order. What the numbers imitate was measured on the model that this repository
trained on WikiMEL's text from scratch (64 test mentions x 1,000 entities); what came out was measured by
``python -m bench.features`` (64 mentions x 1,000 entities; ranks of 512 mentions among 20,000; M3EL):

| | trained | here |
|---|---|---|
| standard deviation of a row of attention logits (softmax over the mention's tokens) | 1.53 | 1.53 |
| G2G of text, standard deviation over entities (dt 256 there, 512 here) | 22.8 | 22.8 |
| G2L of text, standard deviation over entities | 5.4 | 5.7 |
| union score, standard deviation over entities | 5.5 | 6.4 |
| Hits@1 / 3 / 5, MRR (published for M3EL on WikiMEL) | .885 / .956 / .971, .923 | .898 / .971 / .981, .934 |

Golds: entities come in families of four that share half their features. Of the mentions 82% are clear (features of
the gold plus noise), 15.5% ambiguous (features that the gold's family shares plus noise: the four compete), and 2.5%
hard (mostly noise: ranks up to thousands). So the distribution of ranks hardly depends on the KB's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.scales import DT, DV, LT, LV
from m3el_fast.config import EncoderConfig, M3ELConfig, MIMICConfig, RunConfig, ScratchCLIP
from m3el_fast.data.tokenizer import train_tokenizer
from m3el_fast.encoder import Encoder
from m3el_fast.features import ImageOutputs, TextOutputs, TowerOutputs
from m3el_fast.matching import unit
from m3el_fast.models import MELModel, build_model
from m3el_fast.units import IntraModal

FAMILY = 4
CHECKED = 2  # mentions, the first of all, whose results are compared with the reference's scores of the whole KB
NO_IMAGE = 0.39  # share of WikiMEL's entities without an image (spec section 1)

_TABLE, _TERMS = 4096, 4  # rows of each Gaussian table; how many of them a vector sums
_WORDS = 20_000
_CLEAR, _AMBIGUOUS = 0.82, 0.155
_SHARPER = 2.25  # factor on the fresh Wq and Wk: a fresh model's attention is almost uniform


def synthetic_model(kind: str) -> MELModel:
    """An ``m3el`` or ``mimic`` model at paper sizes with fresh weights, the same in every process.

    The vision tower is as wide as its projection (96, not 768): the features behind it have the paper's sizes, and
    synthetic tower outputs are streamed eight times as fast.
    """
    torch.manual_seed(43)
    sizes = ScratchCLIP(
        vocab_size=300,
        text_width=DT,
        text_layers=1,
        text_heads=8,
        vision_width=DV,
        vision_layers=1,
        vision_heads=4,
        projection_dim=DT,
        image_size=224,
        patch_size=32,
    )
    config = RunConfig(
        model=M3ELConfig.paper() if kind == "m3el" else MIMICConfig(),
        encoder=EncoderConfig(scratch=sizes, max_text_tokens=LT, dv=DV),
    )
    model = build_model(config, Encoder.create(config.encoder, train_tokenizer(["a synthetic text"], 300))).eval()
    with torch.no_grad():
        for unit in (model.matcher.text, model.matcher.image):
            if isinstance(unit, IntraModal):
                unit.query.weight.mul_(_SHARPER)
                unit.key.weight.mul_(_SHARPER)
    return model.requires_grad_(False)


class SyntheticKB:
    """Tower outputs of ``count`` entities: a source for ``EntityIndex.build``; nothing is held but tables of 60 MB."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    @cached_property
    def text_key(self) -> Tensor:
        """[n] int64: all texts differ."""
        return torch.arange(self.count)

    @cached_property
    def image_key(self) -> Tensor:
        """[n] int64, -1 = no image."""
        return _image_keys(self.text_key)

    def inputs(self, rows: Tensor, share: Tensor | None = None) -> TowerOutputs:
        """Tower outputs fp32 of the entities ``rows`` [b] int64, one visual row per distinct image."""
        images, index = _image_keys(rows).unique(return_inverse=True)
        text = self.texts(rows)
        return TowerOutputs(text.text_global, text.text_local, *self.images(images), index, text.attention_mask)

    def texts(self, rows: Tensor) -> TextOutputs:
        """text_global [b, 512] and text_local [b, 40, 512] of the entities ``rows`` [b] int64."""
        return TextOutputs(_entity("text", rows), _tokens("word", rows, LT, DT), _all_tokens(rows))

    def images(self, keys: Tensor) -> ImageOutputs:
        """image_global [u, 512] and image_local [u, 50, 96] of the images ``keys`` [u] int64 (-1 = none)."""
        # an image's key is its entity's row; "no image" belongs to a family of its own
        return ImageOutputs(_entity("image", keys), _tokens("patch", keys, LV, DV))


@dataclass(frozen=True)
class SyntheticMentions:
    """Mentions of a KB of ``entities`` entities."""

    entities: int

    def gold(self, rows: Tensor) -> Tensor:
        """[b] int64, the entity of each mention."""
        return _hash(rows, "gold") % self.entities

    def inputs(self, rows: Tensor) -> TowerOutputs:
        """Tower outputs fp32 of the mentions ``rows`` [b] int64, each with an image of its own."""
        gold, draw = self.gold(rows), _uniform(rows, "kind")
        ambiguous = (draw >= _CLEAR) & (draw < _CLEAR + _AMBIGUOUS)
        hard = draw >= _CLEAR + _AMBIGUOUS
        strength = 0.32 + 0.15 * _uniform(rows, "strength")
        strength = torch.where(ambiguous, 0.7, torch.where(hard, 0.3 * strength, strength))[:, None].float()
        image = _image_keys(gold)

        def planted(name: str, of: Tensor) -> Tensor:
            signal = torch.where(ambiguous[:, None], _family(name, of), _entity(name, of))
            return strength * signal + (1 - strength**2).sqrt() * _vectors(f"{name} noise", rows, DT)

        return TowerOutputs(
            planted("text", gold),
            _tokens("word", -2 - rows, LT, DT),
            planted("image", image),
            _tokens("patch", -2 - rows, LV, DV),
            torch.arange(len(rows)),
            _all_tokens(rows),
        )


def _all_tokens(rows: Tensor) -> Tensor:
    """Attention mask [b, 40]: the paper's numbers take padding for text (spec section 3.1)."""
    return torch.ones(len(rows), LT, dtype=torch.int64)


def _image_keys(rows: Tensor) -> Tensor:
    return torch.where(_uniform(rows, "image") < NO_IMAGE, -1, rows)


def _entity(name: str, keys: Tensor) -> Tensor:
    return (_family(name, keys) + _vectors(f"{name} own", keys, DT)) / math.sqrt(2)


def _family(name: str, keys: Tensor) -> Tensor:
    return _vectors(f"{name} family", keys.div(FAMILY, rounding_mode="floor"), DT)


def _tokens(name: str, keys: Tensor, length: int, width: int) -> Tensor:
    """[b, length, width]: words by a Zipf-like law, of texts with 6 to ``length`` words and padding behind, each plus
    half the vector of its position; patches all differ and there is no padding."""
    place = torch.arange(length)
    item = _hash(keys, name)[:, None] + place
    if name == "word":
        word = (_WORDS ** _uniform(item, "word")).long()
        words = 6 + (_hash(keys, "length") % (length - 5))
        word = torch.where(place < words[:, None], word, 0)
        vectors = _table("word", _WORDS, width)[word]
    else:
        vectors = _table(name, _TABLE, width)[_hash(item, name) % _TABLE]
    result: Tensor = vectors + 0.5 * _table(f"{name} position", length, width)
    return result


def _vectors(name: str, keys: Tensor, width: int) -> Tensor:
    """Gaussian vectors [b, width] that depend on the keys [b] alone."""
    terms = torch.stack([_hash(keys, f"{name} {i}") % _TABLE for i in range(_TERMS)], dim=1)
    return torch.nn.functional.embedding_bag(terms, _table(name, _TABLE, width), mode="sum") / math.sqrt(_TERMS)


_tables: dict[tuple[str, int, int], Tensor] = {}


def _table(name: str, rows: int, width: int) -> Tensor:
    key = (name, rows, width)
    if key not in _tables:
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        _tables[key] = torch.randn(rows, width, generator=generator)
    return _tables[key]


def _hash(keys: Tensor, name: str) -> Tensor:
    """Non-negative int64 of the keys' shape: splitmix64."""
    start = np.uint64(crc32(name.encode()) * 0x9E3779B97F4A7C15 % 2**64)
    x: NDArray[np.uint64] = keys.numpy().astype(np.uint64) + start
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return torch.from_numpy((x >> np.uint64(1)).astype(np.int64))


def _uniform(keys: Tensor, name: str) -> Tensor:
    """[0, 1) fp64 of the keys' shape."""
    return _hash(keys, name).double() / 2.0**63


def describe(kind: str) -> str:
    """Spread of the scores (by the reference) and ranks of the golds: the numbers of this module's docstring."""
    from bench import oracle
    from m3el_fast.index import EntityIndex
    from m3el_fast.metrics import Metrics, table
    from m3el_fast.scorer import Scorer

    model, kb = synthetic_model(kind), SyntheticKB(20_000)
    source, rows = SyntheticMentions(len(kb)), torch.arange(512)
    sides = model.mention_side(source.inputs(rows[:64])), model.entity_side(kb.inputs(torch.arange(1000)))
    left, right = (unit(side.item, "text") for side in sides)
    assert isinstance(model.matcher.text, IntraModal)
    logits = torch.einsum("eqd,mkd->emqk", right["query"][:50], left["key"][:16]) / math.sqrt(DV)
    g2g = left["global"] @ right["global"].T
    g2l = 2 * oracle.intra_modal_scores(model.matcher.text, left, right) - g2g
    spreads = {"G2G": g2g, "G2L": g2l, "union": oracle.union_scores(model.matcher, *sides)}
    scorer = Scorer(model, EntityIndex.build(model, kb, progress=False))
    ranks = scorer.ranks(model.mention_side(source.inputs(rows)), source.gold(rows))
    return "\n".join(
        [
            f"{kind}: standard deviation of logits {logits.std(dim=-1).mean():.2f}",
            *(f"{name}: {score.std(dim=1).mean():.1f} over entities" for name, score in spreads.items()),
            table({name: Metrics.of(rank) for name, rank in ranks.items()}),
        ]
    )


if __name__ == "__main__":
    for kind in ("m3el", "mimic"):
        print(describe(kind))
