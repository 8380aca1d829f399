"""The generated sample set: a small multimodal KB where only text and picture together say who is meant.

About 1,500 houses of the isles of Saltmere. Nine share each name: three trades, and of each trade three houses whose
signs differ, and whose texts differ only in what no mention says. So name and sentence leave three houses, the picture
leaves all houses with the same sign (eight on average), and both together leave one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3el_fast.data import sample_text as words
from m3el_fast.data.new_folder import new_folder
from m3el_fast.data.sample_pictures import PAINTS, Look, draw, looks

NAMES = 167
TRADES_PER_NAME = 3
SIGNS_PER_TRADE = 3
MENTIONS_PER_HOUSE = 4
NIL_MENTIONS = 60
NO_PICTURE = 0.02  # of the houses, and of the mentions
PICTURE_COUNTS = (0.6, 0.25, 0.15)  # shares of houses with 1, 2 and 3 pictures
SPLIT_ENDS = {"train": 0.7, "dev": 0.8, "test": 1.0}  # cumulative shares


class _House(NamedTuple):
    qid: str
    name: str
    trade: str
    isle: str
    look: Look


def write_sample(folder: Path, seed: int = 0) -> Path:
    """Write the sample set in the MIMIC layout (spec section 7): ``SAMPLE_{train,dev,test}.json`` and the KB.

    The same seed gives the same bytes, on the same versions of numpy and Pillow.

    Args:
        folder: must not exist; it appears when all of it is written.

    Returns:
        ``folder``.

    Raises:
        InputError: ``folder`` exists, or nothing can be written there.
    """
    with new_folder(folder, "the sample set") as draft:
        _write(draft, np.random.default_rng(seed))
    return folder


def _write(folder: Path, rng: np.random.Generator) -> None:
    for name in ("kb_image", "mention_image"):
        (folder / name).mkdir(parents=True)
    names = [str(name) for name in rng.permutation(words.names())]
    houses = _houses(names[:NAMES], rng)
    entities = [_entity(number, house, folder, rng) for number, house in enumerate(houses)]
    _dump(folder / "kb_entity.json", entities)
    _dump(folder / "qid2id.json", {entity["qid"]: entity["id"] for entity in entities})
    strangers = [_stranger(name, rng) for name in rng.choice(names[NAMES:], NIL_MENTIONS)]
    mentioned = [*houses * MENTIONS_PER_HOUSE, *strangers]
    mentions = [_mention(number, mentioned[i], folder, rng) for number, i in enumerate(rng.permutation(len(mentioned)))]
    start = 0
    for split, share in SPLIT_ENDS.items():
        end = round(share * len(mentions))
        _dump(folder / f"SAMPLE_{split}.json", mentions[start:end])
        start = end


def _houses(names: list[str], rng: np.random.Generator) -> list[_House]:
    by_board = {board: [look for look in looks() if look.board == board] for board in PAINTS}
    plans: list[tuple[str, str, str, Look]] = []
    for name in names:
        for trade in rng.choice(list(words.TRADES), TRADES_PER_NAME, replace=False):
            isle = _pick(words.ISLES, rng)
            for board in rng.choice(list(PAINTS), SIGNS_PER_TRADE, replace=False):
                plans.append((name, str(trade), isle, _pick(by_board[str(board)], rng)))
    order = rng.permutation(len(plans))
    return [_House(f"Q{1001 + number}", *plans[i]) for number, i in enumerate(order)]


def _stranger(name: str, rng: np.random.Generator) -> _House:
    """A house that the KB lacks."""
    return _House("nil", str(name), _pick(list(words.TRADES), rng), _pick(words.ISLES, rng), _pick(looks(), rng))


def _entity(number: int, house: _House, folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    facts = {
        "name": house.name,
        "trade": house.trade,
        "isle": house.isle,
        "keeper": _pick(words.KEEPERS, rng),
        "speciality": _pick(words.SPECIALITIES, rng),
        "year": int(rng.integers(1680, 1920)),
    }
    count = 0 if rng.random() < NO_PICTURE else 1 + int(rng.choice(len(PICTURE_COUNTS), p=PICTURE_COUNTS))
    pictures = [f"{house.qid}_{i}.jpg" for i in range(count)]
    for picture in pictures:
        draw(house.look, rng).save(folder / "kb_image" / picture, quality=90)
    return {
        "id": number,
        "type": "entity",
        "qid": house.qid,
        "entity_name": house.name,
        "attr": words.ATTRIBUTES.format(**facts),
        "desc": words.DESCRIPTION.format(**facts),
        "image_list": pictures,
    }


def _mention(number: int, house: _House, folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    said = _pick(words.HOUSE_STYLES, rng).format(name=house.name)
    parts = (words.TRADES[house.trade], words.OPENINGS, words.CLOSINGS)
    clause, opening, closing = (_pick(part, rng) for part in parts)
    picture = "" if rng.random() < NO_PICTURE else f"{number}.jpg"
    if picture:
        draw(house.look, rng).save(folder / "mention_image" / picture, quality=90)
    return {
        "id": str(number),
        "sentence": words.sentence(clause, opening, closing, said, house.isle),
        "imgPath": picture,
        "mentions": said,
        "entities": house.name,
        "answer": house.qid,
    }


def _pick(options: Any, rng: np.random.Generator) -> Any:
    """One of a sequence (numpy's own choice turns tuples into arrays)."""
    return options[int(rng.integers(len(options)))]


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
