"""Building an entity index: what is in it, what is refused, and that a build survives whatever stops it."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from index_cases import Case, in_child, item_of, make_case, refused
from m3el_fast.encode import KBEncoder
from m3el_fast.errors import InputError
from m3el_fast.features import TowerOutputs
from m3el_fast.frozen import freeze
from m3el_fast.index import EntityIndex, folder
from m3el_fast.index.folder import build_folder
from tiny import tiny_model

# batches of other sizes round otherwise
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("index") / "data")


FORMS: dict[str, dict[str, Any]] = {
    "m3el": {},
    "token mask": {"token_mask": True},
    "t2v": {"cross_form": "t2v"},
    "text alone": {"image": False, "cross": False},
    "image alone": {"text": False, "cross": False},
    "cross alone": {"text": False, "image": False},
    "vdlu": {"intra_modal": "independent"},
    "mimic": {"type": "mimic"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_holds_the_entity_side(form: str, dtype: str, tmp_path: Path) -> None:
    case = make_case(tmp_path / "data", FORMS[form])
    index = case.build(tmp_path / "index", dtype=dtype)
    side = case.model.entity_side(case.data.entities.inputs(torch.arange(12)))
    narrow = {"rtol": 2.0**-8, "atol": 1e-5} if dtype == "bf16" else CLOSE
    seen = 0
    for block in index.blocks(5):
        assert block.item.keys() == side.item.keys()
        for name, values in block.item.items():
            expected = side.item[name][block.start : block.stop]
            assert values.dtype == (torch.bool if name.endswith("mask") else _stored(name, dtype))
            torch.testing.assert_close(values.to(expected.dtype), expected, **_tolerance(name, narrow))
        assert block.live.all()
        assert torch.equal(block.image_index, index.image_index[block.start : block.stop])
        assert block.start == seen
        seen = block.stop
    assert seen == len(index) == index.rows == 12
    assert side.image_index is not None
    for place, visual, rows in index.visual(torch.arange(index.visual_rows)):
        assert visual.keys() == side.visual.keys()
        for name, values in visual.items():
            assert values.dtype == _stored(name, dtype)
            for entity, row in enumerate(index.image_index.tolist()):
                expected = side.visual[name][side.image_index[entity]]
                found = values[rows[row - place.start]].float()
                torch.testing.assert_close(found, expected, **_tolerance(name, narrow))


def _stored(name: str, dtype: str) -> torch.dtype:
    return torch.bfloat16 if dtype == "bf16" and name.endswith(("query", "gate")) else torch.float32


def _tolerance(name: str, narrow: dict[str, float]) -> dict[str, float]:
    return narrow if name.endswith(("query", "gate")) else CLOSE


def test_names_keys_and_twins(case: Case, tmp_path: Path) -> None:
    names = [entity.name for entity in case.data.kb.entities]
    index = case.build(tmp_path / "index", names=names)
    assert list(index.ids) == case.ids
    assert list(index.names) == names
    assert index.row == {one: row for row, one in enumerate(case.ids)}
    assert index.find(["Q7", "nobody", "Q0"]).tolist() == [7, -1, 0]
    assert index.image_index.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 4, 4]
    assert torch.equal(_equals(index.text_key), _equals(case.source(range(12)).text_key))
    assert torch.equal(_equals(index.union_key), _equals(index.text_key) & _equals(index.image_index))
    assert all(torch.equal(a, b) for a, b in zip(item_of(index, 8).values(), item_of(index, 9).values(), strict=True))


def _equals(keys: Tensor) -> Tensor:
    return keys[:, None] == keys


def test_text_key_is_that_of_the_tokens_wherever_they_are(case: Case, tmp_path: Path) -> None:
    whole, part = case.build(), case.build(rows=[11, 3])
    assert part.text_key.tolist() == whole.text_key[[11, 3]].tolist()


def test_items_and_visual_say_where_rows_are(case: Case) -> None:
    index = case.build().add(case.model, case.source([0, 10]), ids=["a", "b"], progress=False)
    rows = torch.tensor([0, 3, 3, 11, 12, 13])
    found = [(place, local.tolist(), len(item["text.gate"])) for place, item, local in index.items(rows)]
    assert found == [(slice(0, 4), [0, 3, 3, 11], 12), (slice(4, 6), [0, 1], 2)]
    assert [place for place, *_ in index.items(torch.tensor([13]))] == [slice(0, 1)]
    assert list(index.items(rows[:0])) == []


def test_tower_outputs_give_the_same_index(case: Case, tmp_path: Path) -> None:
    model = tiny_model(case.config).eval()
    stored = freeze(model, case.data, tmp_path / "towers", progress=False)
    found = EntityIndex.build(model, stored.entities, tmp_path / "index", precision="fp32", progress=False)
    plain = case.build()
    assert torch.equal(found.text_key, plain.text_key)
    assert torch.equal(found.image_index, plain.image_index)
    for name, values in item_of(plain, 5).items():
        torch.testing.assert_close(item_of(found, 5)[name].float(), values.float(), rtol=2e-2, atol=5e-3)  # fp16


class Numbers:
    """A source that was never read from files; its keys are all that is known of texts and images."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self.text_key, self.image_key = source.text_key + 5, source.image_key
        self.texts, self.images = source.texts, source.images

    def __len__(self) -> int:
        return len(self._source)

    def inputs(self, rows: Tensor, share: Tensor | None = None) -> TowerOutputs:
        raise NotImplementedError


def test_keys_of_another_source_stand_for_its_contents(case: Case) -> None:
    index = EntityIndex.build(case.model, Numbers(case.source(range(12))), progress=False)
    assert torch.equal(index.text_key, case.source(range(12)).text_key + 5)
    assert index.image_index.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 4, 4]


def test_temporary_index_goes_with_its_last_version(case: Case) -> None:
    index = case.build()
    place = index.path
    later = index.remove(["Q1"])
    del index
    gc.collect()
    assert len(later) == 11 and place.exists()
    del later
    gc.collect()
    assert not place.parent.exists()


ODD = ["", " ", "a\nb", "Zürich 東京 🗻", "\u2028", "x" * 100_000, "\ud800", "Q1\0", "null", '"', "e\u0301", "\u00e9"]


def test_any_string_is_an_id(case: Case, tmp_path: Path) -> None:
    case.build(tmp_path / "index", ids=ODD, names=[one[::-1] for one in ODD])
    index = EntityIndex.open(tmp_path / "index")
    assert list(index.ids) == ODD
    assert list(index.names) == [one[::-1] for one in ODD]
    assert index.find(ODD).tolist() == list(range(12))
    smaller = index.remove(ODD[:6])
    assert list(smaller.row) == ODD[6:]


def test_shows_entities_in_progress(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    case.build(progress=True)
    assert "entity/s" in capfd.readouterr().err


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_refuses_an_empty_kb(case: Case, tmp_path: Path) -> None:
    empty = Numbers(case.source([0]))
    empty._source = []
    with pytest.raises(InputError, match="at least one entity"):
        EntityIndex.build(case.model, empty, tmp_path / "index", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": ["a", "b", "a"]}, "entity 3: expected each id once, got 'a' again"),
        ({"ids": ["a"]}, "one for each of 3 entities, got 1"),
        ({"ids": ["a", 2, "b"]}, "entity 2: expected a string, got 2"),
        ({"names": ["a"]}, "one for each of 3 ids, got 1"),
        ({"dtype": "fp16"}, "expected bf16 or fp32, got fp16"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str, case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        case.build(tmp_path / "index", [0, 1, 2], **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("what", ["item", "visual"])
def test_refuses_features_that_are_not_finite(
    what: str, value: float, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(KBEncoder, "items" if what == "item" else "images")

    def spoiled(self: KBEncoder, *args: Any) -> Iterator[Any]:
        for piece, tensors, *rest in original(self, *args):
            for place, row in enumerate(args[0][piece].tolist()):
                if row == 3:  # entity 3, or an image that entity 3 has
                    name = "text.query" if what == "item" else "query"
                    tensors[name] = tensors[name].clone()
                    tensors[name][place, 1, 2] = value
            yield piece, tensors, *rest

    monkeypatch.setattr(KBEncoder, original.__name__, spoiled)
    with pytest.raises(InputError, match=r"entity 'Q3', (image, |text\.)query: expected finite features, got"):
        case.build(tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("there", ["a file", "an index", "a folder of other files"])
def test_refuses_a_place_that_is_taken(there: str, case: Case, tmp_path: Path) -> None:
    out = tmp_path / "index"
    if there == "a file":
        out.write_text("mine")
    elif there == "an index":
        case.build(out, [0])
    else:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"expected a new folder, got {there}"):
        case.build(out)
    assert sorted(tmp_path.rglob("*")) == before


def test_refuses_a_place_below_a_file(case: Case, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="below a file"):
        case.build(tmp_path / "file" / "index")


def test_an_empty_folder_is_a_new_one(case: Case, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    assert len(case.build(tmp_path / "index")) == 12


def test_two_builds_into_one_folder(case: Case, tmp_path: Path) -> None:
    with build_folder(tmp_path / "index") as first:
        with pytest.raises(InputError, match="expected no other writer, got one that is at work"):
            case.build(tmp_path / "index")
        assert first.exists()
        assert in_child(lambda: refused(lambda: case.build(tmp_path / "index"), "no other writer")) == 0
        case.build(tmp_path / "another").manifest.write(first)
        for name in ("items-000001.safetensors", "visual-000001.safetensors"):
            shutil.copy(tmp_path / "another" / name, first / name)
    assert len(EntityIndex.open(tmp_path / "index")) == 12
    assert not first.exists()


def test_a_build_that_ends_meanwhile_stays(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, out = case.build(tmp_path / "ready").path, tmp_path / "index"
    original = folder.require_new
    checks: list[Path] = []

    def late(place: Path) -> None:
        checks.append(place)
        if len(checks) == 2:  # the check with the lock: another build has ended since the first
            ready.rename(out)
        original(place)

    monkeypatch.setattr(folder, "require_new", late)
    with pytest.raises(InputError, match="a new folder, got an index"):
        case.build(out)
    assert len(EntityIndex.open(out)) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_memory_is_bounded(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from m3el_fast.index.synthetic import Sizes, write_random_index\n"
        "write_random_index(Path(sys.argv[1]), Sizes(2000, 1000), progress=False)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_random_index(Path(sys.argv[2]), Sizes(8000, 4000), progress=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    out = [str(tmp_path / name) for name in ("small", "large")]
    done = subprocess.run([sys.executable, "-c", code, *out], capture_output=True, text=True, check=True)
    written = sum(path.stat().st_size for path in (tmp_path / "large").iterdir())
    assert written > 100e6
    assert int(done.stdout) * 1024 < written / 4


def test_manifest_names_the_precision_that_was_used(case: Case) -> None:
    index = case.build(rows=range(3), precision="auto")
    assert index.manifest.precision in ("bf16", "fp32")  # never "auto": what is added elsewhere must be encoded alike
