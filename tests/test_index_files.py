"""An index's files: their format, damage of every kind, and the writer that needs no model."""

from __future__ import annotations

import json
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from index_cases import (
    IMAGE_SHAPES,
    ROW_SHAPES,
    Case,
    files,
    item_of,
    make_case,
    random_entities,
    random_rows,
    small_layout,
)
from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex, write_index
from m3el_fast.index.describe import bytes_per_entity, describe
from m3el_fast.index.fingerprint import fingerprint
from m3el_fast.index.lookup import digests, find, pack_table
from m3el_fast.index.segment import SegmentWriter, segment_bytes
from m3el_fast.index.shards import PAGE, Shard, ShardWriter, shard_bytes
from m3el_fast.index.strings import Strings, pack
from m3el_fast.index.synthetic import Sizes, write_random_index
from m3el_fast.index.verify import verify


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("index") / "data")


@pytest.fixture(scope="module")
def built(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with two segments and a removal, to copy."""
    index = case.build(tmp_path_factory.mktemp("built") / "index", range(8))
    return index.add(case.model, case.source([8, 10]), ids=["a", "b"], progress=False).remove(["Q2"]).path


@pytest.fixture
def path(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "index"))


# -- one file ----------------------------------------------------------------------------------------------------------

SPECS = {
    "odd": (torch.uint8, (7,)),
    "bf16": (torch.bfloat16, (5, 3, 2)),
    "none": (torch.float32, (0, 4)),
    "flag": (torch.bool, (5, 3)),
    "wide": (torch.float32, (5, 9)),
    "count": (torch.int64, (5,)),
}


def random_tensor(spec: tuple[torch.dtype, tuple[int, ...]]) -> Tensor:
    return (torch.randn(spec[1], generator=torch.Generator().manual_seed(3)) * 3).to(spec[0])


def test_a_file_is_safetensors_and_aligned(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    values = {
        name: random_tensor((d, s)) if d != torch.uint8 else torch.arange(7).to(d) for name, (d, s) in SPECS.items()
    }
    with ShardWriter(path, SPECS) as file:
        for name, tensor in values.items():
            file.put_all(name, tensor)
    assert path.stat().st_size == shard_bytes(SPECS)
    for tensors in (load_file(path), Shard(path).tensors):
        found = {name: tensor for name, tensor in tensors.items() if not name.startswith("pad.")}
        assert found.keys() == values.keys()
        for name, tensor in values.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)
    with safe_open(path, "pt") as opened:
        assert set(opened.keys()) >= set(SPECS)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert (8 + length) % PAGE == 0
    header = json.loads(raw[8 : 8 + length])
    assert all(header[name]["data_offsets"][0] % 64 == 0 for name in SPECS)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in Shard(path).tensors.values())


@given(st.permutations(range(9)), st.integers(1, 9))
def test_rows_come_in_any_order(order: list[int], size: int) -> None:
    values = torch.arange(36, dtype=torch.float32).view(9, 4).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        with ShardWriter(path, {"a": (torch.bfloat16, (9, 4)), "b": (torch.int64, (9,))}) as file:
            for rows in torch.tensor(order).split(size):
                file.put("a", rows, values[rows])
        assert torch.equal(Shard(path).tensors["a"], values)
        assert not Shard(path).tensors["b"].any()  # never written: zero


@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        (torch.arange(2), torch.zeros(2, 3), r"a: expected torch.float32 \[2, 4\], got torch.float32 \[2, 3\]"),
        (torch.arange(3), torch.zeros(2, 4), r"expected torch.float32 \[3, 4\]"),
        (torch.arange(2), torch.zeros(2, 4).half(), "got torch.float16"),
        (torch.tensor([4, 5]), torch.zeros(2, 4), "rows from 0 to 4, got 4 to 5"),
        (torch.tensor([-1]), torch.zeros(1, 4), "rows from 0 to 4, got -1"),
    ],
)
def test_refuses_other_rows(rows: Tensor, values: Tensor, message: str, tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path / "file", {"a": (torch.float32, (5, 4))}) as file,
        pytest.raises(ValueError, match=message),
    ):
        file.put("a", rows, values)
    assert not Shard(tmp_path / "file").tensors["a"].any()


def test_resumes_only_its_own_file(tmp_path: Path) -> None:
    specs = {"a": (torch.float32, (5, 4))}
    with ShardWriter(tmp_path / "file", specs) as file:
        file.put("a", torch.tensor([3]), torch.ones(1, 4))
    with ShardWriter(tmp_path / "file", specs, resume=True) as file:
        file.put("a", torch.tensor([1]), torch.ones(1, 4))
    assert Shard(tmp_path / "file").tensors["a"].sum(dim=1).tolist() == [0, 4, 0, 4, 0]
    with pytest.raises(InputError, match="a file that this build began"):
        ShardWriter(tmp_path / "file", {"a": (torch.float32, (5, 8))}, resume=True)


@pytest.mark.parametrize(
    "content", [b"", b"\x10", b"\xff" * 100, struct.pack("<Q", 2) + b"[]", b"\x02" + b"\0" * 7 + b"{x"]
)
def test_refuses_a_file_of_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match="file of tensors"):
        Shard(tmp_path / "file")


# -- strings and tables ------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=())), max_size=5), min_size=1, max_size=3))
def test_strings_come_back(parts: list[list[str]]) -> None:
    strings = Strings([pack(part) for part in parts])
    expected = [string for part in parts for string in part]
    assert list(strings) == expected
    assert [strings[i - len(expected)] for i in range(len(expected))] == expected
    assert strings[1:] == expected[1:]
    order = torch.arange(len(expected)).flip(0).repeat(2)
    assert strings.gather(order) == expected[::-1] * 2
    with pytest.raises(IndexError):
        strings[len(expected)]


@given(st.lists(st.integers(-3, 3), max_size=12), st.lists(st.integers(-4, 4), max_size=6))
def test_a_table_finds_every_row(keys: list[int], wanted: list[int]) -> None:
    place, row = find(pack_table(torch.tensor(keys, dtype=torch.int64)), torch.tensor(wanted, dtype=torch.int64))
    pairs = {(p, r) for p, one in enumerate(wanted) for r, key in enumerate(keys) if key == one}
    assert set(zip(place.tolist(), row.tolist(), strict=True)) == pairs
    assert len(place) == len(pairs)


def test_equal_id_keys_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def colliding(values: Iterator[bytes], words: int) -> Tensor:
        return torch.tensor([len(value) for value in values]).view(-1, 1)

    monkeypatch.setattr("m3el_fast.index.segment.digests", colliding)
    monkeypatch.setattr("m3el_fast.index.store.id_keys", lambda ids: torch.tensor([len(one) for one in ids]))
    entities = random_entities(4, 2, ["aa", "ab", "c", "ba"])
    write_index(
        tmp_path / "index", entities, [random_rows(ROW_SHAPES, 4)], [random_rows(IMAGE_SHAPES, 2)], progress=False
    )
    assert EntityIndex.open(tmp_path / "index").find(["ba", "c", "bb", "ab"]).tolist() == [3, 2, -1, 1]


def test_digests_are_blake2b() -> None:
    assert digests([b"abc"], 1).tolist() == [[int.from_bytes(bytes.fromhex("d8bb14d833d59559"), "little", signed=True)]]
    assert digests([], 2).shape == (0, 2)


# -- damage ------------------------------------------------------------------------------------------------------------


def test_verify_passes_what_is_whole(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(path, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", [0.0, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0])
@pytest.mark.parametrize("bit", [0, 3, 7])
def test_verify_finds_one_flipped_bit(place: float, bit: int, path: Path) -> None:
    for name, content in files(path).items():
        at = min(int(place * len(content)), len(content) - 1)
        (path / name).write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        with pytest.raises(InputError, match=re.escape(name)):
            verify(path, progress=False)
        (path / name).write_bytes(content)
    verify(path, progress=False)


def test_a_flipped_bit_of_the_manifest_is_found(built: Path, tmp_path: Path) -> None:
    content = (built / "manifest.json").read_bytes()
    for at in range(0, len(content), 3):
        flipped = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        (tmp_path / "manifest.json").write_bytes(flipped)
        with pytest.raises(InputError, match=re.escape("manifest.json")):
            EntityIndex.open(tmp_path)


def test_verify_names_all_that_is_wrong(path: Path) -> None:
    (path / "items-000001.safetensors").unlink()
    (path / "removed-000003.safetensors").write_bytes(b"short")
    with pytest.raises(
        InputError, match=r"items-000001\.safetensors is missing; removed-000003\.safetensors is damaged"
    ):
        verify(path, progress=False)


def test_open_refuses_missing_and_truncated_files(path: Path) -> None:
    for name, content in files(path).items():
        (path / name).unlink()
        with pytest.raises(InputError, match=r"no such file|an entity index, a folder with manifest\.json, got none"):
            EntityIndex.open(path)
        (path / name).write_bytes(content[:-1])
        with pytest.raises(InputError, match=r"expected [0-9,]+ bytes, got|undamaged manifest"):
            EntityIndex.open(path)
        (path / name).write_bytes(content)
    assert len(EntityIndex.open(path)) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "an index of format 1, got format 2. Build the index again"),
        ({"format": 0}, "an index of format 1, got format 0"),
        ({"version": "x"}, "undamaged manifest"),
    ],
)
def test_open_refuses_another_format(change: dict[str, object], message: str, path: Path) -> None:
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=message):
        EntityIndex.open(path)


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', "", "\x00", '"format"'])
def test_open_refuses_a_manifest_of_something_else(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        EntityIndex.open(tmp_path)


def test_open_refuses_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError):
            EntityIndex.open(place)


def test_open_refuses_tensors_of_other_dims(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_index(
        other, random_entities(8, 4), [random_rows(ROW_SHAPES, 8)], [random_rows(IMAGE_SHAPES, 4)], progress=False
    )
    manifest, entries = EntityIndex.open(path).manifest, EntityIndex.open(other).manifest.segments
    shutil.copy(other / "items-000001.safetensors", path)
    segment = manifest.segments[0].model_copy(update={"items": entries[0].items})
    manifest.model_copy(update={"segments": [segment, *manifest.segments[1:]]}).write(path)
    with pytest.raises(InputError, match=r"expected a tensor torch\.float32"):
        EntityIndex.open(path)


# -- the writer ------------------------------------------------------------------------------------------------------


def test_writes_tensors_from_anywhere(tmp_path: Path) -> None:
    rows, images = random_rows(ROW_SHAPES, 10), random_rows(IMAGE_SHAPES, 3)

    def blocks(tensors: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(next(iter(tensors.values()))), size):
            yield {name: tensor[start : start + size] for name, tensor in tensors.items()}

    write_index(tmp_path / "index", random_entities(10, 3), blocks(rows, 4), blocks(images, 2), progress=False)
    index = EntityIndex.open(tmp_path / "index")
    found = item_of(index, 7)
    assert torch.equal(found["text.global"], rows["text.global"][7])
    assert torch.equal(found["cross.t2v"], rows["cross.t2v"][7])
    assert torch.equal(found["text.query"], rows["text.query"][7].bfloat16())
    assert torch.equal(found["image query"], images["query"][1].bfloat16())
    assert torch.equal(found["image global"], images["global"][1])
    assert index.manifest.layout.item["coarse"].shape == (10,)
    for where, counts in (("entities", (9, 3)), ("entities", (11, 3)), ("images", (10, 2)), ("images", (10, 4))):
        with pytest.raises(InputError, match=f"{where}: expected {10 if where == 'entities' else 3} rows"):
            write_index(
                tmp_path / "other",
                random_entities(10, 3),
                [random_rows(ROW_SHAPES, counts[0])],
                [random_rows(IMAGE_SHAPES, counts[1])],
                progress=False,
            )
        assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_writer_refuses_other_tensors(tmp_path: Path) -> None:
    with SegmentWriter(tmp_path, 1, random_entities(4, 2), small_layout()) as writer:
        rows = random_rows(ROW_SHAPES, 4)
        for item, message in (
            (
                {name: rows[name] for name in rows if name != "text.gate"},
                "expected the tensors coarse, text.gate, text.query",
            ),
            ({name: rows[name] for name in rows if name != "cross.t2v"}, r"coarse: expected rows of shape \[10\]"),
            (rows | {"text.mask": rows["text.gate"] > 0}, "got coarse, text.gate, text.mask, text.query"),
            (rows | {"text.gate": rows["text.gate"][:, :2]}, r"text.gate: expected rows of shape \[4\], .*got \[2\]"),
        ):
            with pytest.raises(InputError, match=message):
                writer.put_items(torch.arange(4), item)


def test_a_value_that_bf16_cannot_hold_is_refused(tmp_path: Path) -> None:
    with SegmentWriter(tmp_path, 1, random_entities(4, 2), small_layout()) as writer:
        rows = random_rows(ROW_SHAPES, 4)
        rows["text.query"][2, 0, 0] = 3.4e38  # finite as fp32
        with pytest.raises(InputError, match=r"entity 'Q2', text\.query: expected finite features, got inf"):
            writer.put_items(torch.arange(4), rows)


def test_disk_space_is_known_before(tmp_path: Path) -> None:
    entities = random_entities(11, 3)
    with SegmentWriter(tmp_path, 1, entities, small_layout()):
        pass
    assert segment_bytes(entities, small_layout()) == sum(map(len, files(tmp_path).values()))


def test_random_index(tmp_path: Path) -> None:
    sizes = Sizes(700, 300, dt=8, dv=4, d=4, text_tokens=3, image_tokens=2)
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        write_random_index(tmp_path / name, sizes, seed, progress=False)
    assert files(tmp_path / "one") == files(tmp_path / "same") != files(tmp_path / "other")
    index = EntityIndex.open(tmp_path / "one")
    assert (len(index), index.visual_rows) == (700, 300)
    assert sorted(index.image_index.unique().tolist()) == list(range(300))


def test_bytes_of_an_entity_at_paper_sizes(tmp_path: Path) -> None:
    write_random_index(tmp_path / "index", Sizes(500, 305), progress=False)
    index = EntityIndex.open(tmp_path / "index")
    # coarse 4 (512 + 2 x 96), Q 2 x 40 x 96, gate 2 x 96; an image 4 x 96, 2 x 50 x 96, 2 x 96, which 61% have
    assert index.manifest.layout.item_bytes() == 2816 + 7680 + 192
    assert index.manifest.layout.visual_bytes() == 384 + 9600 + 192
    assert bytes_per_entity(index) < 10_688 + 0.61 * 10_176 + 130
    assert "(10,688 each and 10,176 an image)" in describe(index)


# -- the model -------------------------------------------------------------------------------------------------------


def test_fingerprint_is_that_of_the_weights(case: Case, tmp_path: Path) -> None:
    own = fingerprint(case.model)
    case.model.save_pretrained(tmp_path / "checkpoint")
    assert fingerprint(type(case.model).from_pretrained(tmp_path / "checkpoint")) == own
    for name, parameter in [*case.model.matcher.named_parameters(), *case.model.encoder.named_parameters()]:
        before = parameter.detach().clone()
        parameter.data.view(-1)[-1] += 1
        assert fingerprint(case.model) != own, name
        parameter.data.copy_(before)
    assert fingerprint(case.model) == own


def test_fingerprint_knows_the_matchers_switches(case: Case, tmp_path: Path) -> None:
    masked = make_case(tmp_path / "data", {"token_mask": True})  # the same weights
    assert fingerprint(masked.model) != fingerprint(case.model)
