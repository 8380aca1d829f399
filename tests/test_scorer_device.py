"""Scorer where entities are copied to a GPU, whole or a block at a time: the same results as from the mapped files, no
wait for the device but those that are stated, and no tensor of another device.

Without a GPU the copies are made on the CPU, kernels run in Triton's interpreter, and tensors without values (meta)
show waits and mixed devices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from m3el_fast import evaluate, link, ops
from m3el_fast.devices import named_device
from m3el_fast.errors import InputError
from m3el_fast.index import EntityIndex
from m3el_fast.matching import Side
from m3el_fast.ops import gpu
from m3el_fast.scorer import COMPONENTS, Scorer
from m3el_fast.scoring import entities
from m3el_fast.scoring.entities import Block, Entities, Gathered, Mapped, Resident, Streamed
from m3el_fast.scoring.memory import Sizes, fits, gpu_sizes
from m3el_fast.scoring.ranks import RankCounter
from m3el_fast.scoring.scan import ScannedBlock, Scanner
from m3el_fast.scoring.selection import Selection
from planted import MemoryIndex
from test_scorer import FORMS, prepare
from test_scorer_exact import DEAD, ENTITIES, MENTIONS, Planted, check, plant
from tiny import write_tiny

CPU = torch.device("cpu")
PLACES: dict[str, Callable[[Any, torch.device], Entities]] = {"resident": Resident, "streamed": Streamed}

Open = Callable[..., Scorer]


@pytest.fixture(params=PLACES)
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Makes a scorer whose entities are copied as for a GPU, in several pieces, and whose blocks are a GPU's."""
    return as_on_a_gpu(PLACES[request.param], monkeypatch)


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> Open:
    return as_on_a_gpu(Streamed, monkeypatch)


def as_on_a_gpu(place: Callable[[Any, torch.device], Entities], monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setattr("m3el_fast.scorer.entities_on", lambda device, index: place(index, device))
    monkeypatch.setattr("m3el_fast.scorer.sizes_on", lambda device: Sizes(mentions=4, pairs=4 * 61, entities=100))
    monkeypatch.setattr(entities, "_STAGED", 20_000)
    return Scorer


# -- what is decided by memory ----------------------------------------------------------------------------------------


def test_blocks_of_a_gpu_by_its_memory() -> None:
    large = gpu_sizes(80 << 30)
    assert (large.mentions, large.pairs) == (1024, 1 << 25)
    assert large.entities_with(1024) == 1 << 15
    assert large.entities_with(1) == large.entities_with(0) == 1 << 16
    assert [large.mentions_of(count) for count in (0, 1, 1024, 1025, 5169)] == [1, 1, 1024, 513, 862]
    small = gpu_sizes(1 << 30)
    assert small.pairs == (1 << 28) // 128  # a quarter of it, 128 bytes a pair
    assert gpu_sizes(0).entities_with(1024) >= 256


def test_an_index_is_resident_where_it_leaves_room_for_scores() -> None:
    assert fits(6 << 30, 10 << 30)
    assert not fits((6 << 30) + 1, 10 << 30)
    planted = plant("m3el")
    side = planted.index.side
    tensors = [*side.item.values(), *side.visual.values()]
    assert entities._bytes(planted.index) == sum(tensor.nbytes for tensor in tensors)


def test_a_cpu_reads_the_mapped_files() -> None:
    planted = plant("m3el")
    entity = entities.entities_on(CPU, planted.index)
    assert isinstance(entity, Mapped)
    block = next(entity.blocks(10))
    for name, tensor in block.item.items():
        assert tensor.data_ptr() == planted.index.side.item[name].data_ptr()


def test_an_index_for_which_memory_runs_out_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(index: object, device: object) -> None:
        raise torch.OutOfMemoryError("the estimate was wrong")

    cuda, streamed = torch.device("cuda", 0), object()
    monkeypatch.setattr(entities, "free_bytes", lambda device: 1 << 40)
    monkeypatch.setattr(entities, "Resident", full)
    monkeypatch.setattr(entities, "Streamed", lambda index, device: streamed)
    assert entities.entities_on(cuda, plant("m3el").index) is streamed


def test_a_gpu_scans_in_bf16_where_it_has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, precision in (("", "bf16"), ("triton is not installed", "fp32")):
        monkeypatch.setattr(gpu, "MISSING", missing)
        assert ops.scan_precision(torch.device("cuda", 0)) == precision
    assert ops.scan_precision(CPU) == ops.scan_precision()


# -- what is copied ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [1, 37, 1000])
def test_blocks_are_those_of_the_index(place: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entities, "_STAGED", 20_000)
    planted = plant("m3el", dead=DEAD)
    check_blocks(PLACES[place](planted.index, CPU), planted.index, size)


def check_blocks(found: Entities, index: MemoryIndex, size: int) -> None:
    assert torch.equal(found.live.cpu(), index.live)
    assert torch.equal(found.image_index.cpu(), index.image_index)
    stop = 0
    for block in found.blocks(size):
        assert block.start == stop < block.stop <= stop + size
        stop = block.stop
        assert torch.equal(block.images[block.place].cpu(), index.image_index[block.start : stop])
        assert (block.images.diff() > 0).all()
        for name, tensor in block.item.items():
            assert torch.equal(tensor.cpu(), index.side.item[name][block.start : stop])
        [(visual, rows)] = block.visual
        assert rows is None
        assert visual.keys() == index.side.visual.keys()
        for name, tensor in visual.items():
            assert torch.equal(tensor, index.side.visual[name].to(tensor.device)[block.images])
    assert stop == index.rows


@pytest.mark.parametrize("place", PLACES)
def test_rows_are_those_of_the_index(place: str) -> None:
    index = plant("m3el").index
    found = PLACES[place](index, CPU)
    rows = torch.tensor([0, 3, 3, 40, 41, 63, 64, 97, 99])
    for gathered, side in ((found.items(rows), index.side.item), (found.visual(rows), index.side.visual)):
        [(places, tensors, local)] = gathered
        assert places == slice(0, len(rows))
        assert tensors.keys() == side.keys()
        for name, tensor in tensors.items():
            assert len(tensor) == 8  # row 3 once
            assert torch.equal(tensor[local], side[name][rows])


def test_the_next_block_is_read_while_one_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = Streamed(plant("m3el").index, CPU)
    begun = {start: threading.Event() for start in range(0, ENTITIES, 50)}
    send = streamed._send

    def watched(start: int, stop: int, names: None) -> Callable[[], Block]:
        begun[start].set()
        return send(start, stop, names)

    monkeypatch.setattr(streamed, "_send", watched)
    blocks = streamed.blocks(50)
    for start in begun:
        assert next(blocks).start == start
        assert begun.get(start + 50, begun[start]).wait(10)
        assert not begun.get(start + 100, threading.Event()).is_set()  # one, no more
    assert not list(blocks)


def test_a_scan_that_is_given_up_leaves_no_thread() -> None:
    before = threading.active_count()
    blocks = Streamed(plant("m3el").index, CPU).blocks(10)
    next(blocks)
    blocks.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("row", [0, 70, ENTITIES - 1])
def test_an_error_while_reading_ahead_is_raised(row: int, streamed: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant("m3el")
    scorer = streamed(planted.model, planted.index, block=61)
    scorer.topk(planted.mentions, 3)
    read, readers = planted.index.items, set()

    def failing(rows: Tensor) -> Gathered:
        if threading.current_thread() is not threading.main_thread():
            readers.add(threading.current_thread().name)
            if row in rows:
                raise OSError("the disk is gone")
        return read(rows)

    monkeypatch.setattr(planted.index, "items", failing)
    before = threading.active_count()
    for call in (lambda: scorer.topk(planted.mentions, 3), lambda: scorer.ranks(planted.mentions, planted.gold)):
        with pytest.raises(OSError, match="the disk is gone"):
            call()
    assert readers
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("call", "step"), [("topk", (Selection, "offer")), ("ranks", (RankCounter, "add")), ("scores", (Tensor, "cpu"))]
)
def test_an_interrupted_scan_leaves_no_thread(
    call: str, step: tuple[type, str], streamed: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = plant("m3el")
    scorer = streamed(planted.model, planted.index)
    scorer.topk(planted.mentions, 3)
    arguments: dict[str, tuple[Any, ...]] = {"topk": (3,), "ranks": (planted.gold,), "scores": ()}
    monkeypatch.setattr(*step, interrupt)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt) as caught:  # its traceback keeps the frames, as a console's does
        getattr(scorer, call)(planted.mentions, *arguments[call])
    assert threading.active_count() == before
    assert caught.tb is not None


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("form", FORMS)
def test_exact_in_every_form(placed: Open, form: str, dtype: torch.dtype) -> None:
    planted = plant(form, dtype, DEAD)
    scorer = placed(planted.model, planted.index)
    check(planted, scorer)
    same(planted, scorer, Scorer(planted.model, planted.index, block=37))


@pytest.mark.parametrize("block", [1, 64, 1000])
def test_exact_whatever_the_blocks(placed: Open, block: int) -> None:
    planted = plant("m3el", dead=DEAD, near=3e-3)
    check(planted, placed(planted.model, planted.index, block=block))


@pytest.mark.parametrize("form", ["m3el", "mimic", "text", "image"])
def test_an_error_beyond_half_the_margin_repeats_the_scan(
    form: str, placed: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = plant(form, dead=DEAD)
    real = Scanner.score

    def off(self: Scanner, mentions: Side, block: Block, names: Any) -> ScannedBlock:
        scanned = real(self, mentions, block, names)
        if block.start >= 61:  # behind what the first margins come from
            for scores in (*scanned.scores.values(), *[d for d in (scanned.distinct,) if d is not None]):
                scores += 3 * torch.sin(torch.arange(scores.shape[1]) * 1.7)
        return scanned

    monkeypatch.setattr(Scanner, "score", off)
    scorer, before = placed(planted.model, planted.index, block=61), threading.active_count()
    check(planted, scorer)
    assert scorer.stats.repeats > 0
    assert scorer.stats.margin["union"] >= 2 * scorer.stats.error["union"] > 0.3
    assert threading.active_count() == before


@pytest.mark.parametrize("form", ["m3el", "text", "mimic"])
def test_an_index_of_several_files_on_the_disk(placed: Open, form: str, tmp_path: Path) -> None:
    model, data = prepare(write_tiny(tmp_path / "data"), form)
    index = EntityIndex.build(model, data.entities, tmp_path / "index", progress=False)
    ids = [f"again {row}" for row in range(len(index))]
    index = index.add(model, data.entities, ids=ids, progress=False).remove(["3", "again 7"])
    with torch.inference_mode():
        mentions = model.mention_side(data.splits["test"].source.inputs(torch.arange(9)))
    found, expected = placed(model, index), Scorer(model, index)
    gold = torch.tensor([0, 1, 2, 12, 13, 23, 8, 9, 4])
    torch.testing.assert_close(found.ranks(mentions, gold), expected.ranks(mentions, gold), rtol=0, atol=0)
    assert torch.equal(found.topk(mentions, 22).rows, expected.topk(mentions, 22).rows)
    torch.testing.assert_close(found.scores(mentions), expected.scores(mentions), rtol=1e-5, atol=1e-5)
    assert entities._bytes(index) == index.rows * index.manifest.layout.item_bytes() + (
        index.visual_rows * index.manifest.layout.visual_bytes()
    )


def same(planted: Planted, found: Scorer, expected: Scorer) -> None:
    """Also what :func:`check` does not look at."""
    ids = [[planted.index.ids[row] for row in (5, 6, 7, 5, 140)[: number % 6]] for number in range(MENTIONS)]
    for name, score in expected.components(planted.mentions, ids).items():
        torch.testing.assert_close(found.components(planted.mentions, ids)[name], score, rtol=1e-5, atol=1e-5)
    for name, score in expected.components(planted.mentions).items():
        torch.testing.assert_close(found.components(planted.mentions)[name], score, rtol=1e-5, atol=1e-5)
    chosen = found.topk(planted.mentions, 3, ids), expected.topk(planted.mentions, 3, ids)
    assert torch.equal(chosen[0].rows, chosen[1].rows)
    none = planted.mentions.take(slice(0, 0))
    assert found.topk(none, 3).rows.shape == (0, 3)
    assert found.scores(none).shape == (0, len(planted.index))


# -- tensors without values: no wait that is not stated, and nothing on the CPU ----------------------------------------


class Watch(TorchFunctionMode):
    """Counts the waits that are stated, as if three entries were found, and refuses tensors on the CPU.

    Meta tensors have no values: whatever else would wait for one is an error by itself.
    """

    waits = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.nonzero:
            self.waits += 1
            columns = [torch.empty(3, dtype=torch.int64, device="meta") for _ in args[0].shape]
            return tuple(columns) if kwargs.get("as_tuple") else torch.stack(columns, dim=1)
        result = function(*args, **kwargs)
        for one in tree_leaves((args, kwargs, result)):
            assert not isinstance(one, Tensor) or one.is_meta, f"{function} with a tensor on the CPU"
        return result


def meta(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS)
def test_a_block_waits_once_a_component_and_stays_on_the_device(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    planted = plant(form, dead=DEAD)
    matcher, left = planted.model.matcher.to("meta"), planted.mentions
    assert left.image_index is not None
    mentions = Side(meta(left.item), meta(left.visual), left.image_index.to("meta"))
    real = next(Resident(planted.index, CPU).blocks(100))
    visual = [(meta(tensors), None) for tensors, _ in real.visual]
    block = Block(real.start, real.stop, meta(real.item), real.images.to("meta"), real.place.to("meta"), visual)
    live = planted.index.live[: real.stop].to("meta")
    gold, key = torch.empty(MENTIONS, device="meta"), torch.empty(MENTIONS, dtype=torch.int64, device="meta")
    precision: ops.Precision = "fp32" if form == "max-pooling" else "bf16"
    with Watch() as watch:
        scanned = Scanner(matcher, None, precision).score(mentions, block, COMPONENTS)  # type: ignore[arg-type]
        assert watch.waits == 0
        assert scanned.scores.keys() <= set(COMPONENTS)
        counters = [RankCounter(gold, key, key, 0.1, never, never) for _ in scanned.scores]
        for counter, (name, scores) in zip(counters, scanned.scores.items(), strict=True):
            if name == "image":
                assert scanned.distinct is not None
                counter.add(scanned.distinct, block.images, block.images, block.images)
            else:
                counter.add(scores, block.place, block.place, block.place)
        assert watch.waits == len(scanned.scores)
        selection = Selection(MENTIONS, 5, 0.1, gold.device)
        selection.offer(scanned.scores["union"], 0, live)
        assert watch.waits == len(scanned.scores) + 2


def never(*_: Any) -> Any:
    raise AssertionError("nothing is settled with so few open entries")


@pytest.mark.parametrize("step", ["copy", "any", "mask", "mixed index", "mixed product"])
def test_the_watch_sees_waits_and_other_devices(step: str) -> None:
    tensor, other = torch.empty(3, 3, device="meta"), torch.zeros(3, 3)
    steps: dict[str, Callable[[], object]] = {
        "copy": lambda: tensor.cpu(),
        "any": lambda: bool((tensor > 0).any()),
        "mask": lambda: tensor[tensor > 0],
        "mixed index": lambda: tensor[other[0].long()],
        "mixed product": lambda: tensor @ other,
    }
    with pytest.raises((RuntimeError, AssertionError)), Watch():
        steps[step]()


# -- the kernels, in the interpreter ----------------------------------------------------------------------------------


@pytest.mark.skipif(not gpu.INTERPRETED or bool(gpu.MISSING), reason="needs Triton's interpreter")
@pytest.mark.parametrize("form", ["m3el", "mimic"])
def test_with_the_kernels_of_a_gpu(form: str, placed: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_interpreter import correct_bf16

    correct_bf16()
    planted = plant(form, dead=DEAD, mentions=5)  # two blocks
    monkeypatch.setattr(gpu, "on_gpu", lambda tensor: True)
    used = set()

    class Launches(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            used.add(str(op))
            return op(*args, **(kwargs or {}))

    with Launches():
        check(planted, placed(planted.model, planted.index, block=80))
    assert {"m3el_fast.triton_g2l_scores.default", "m3el_fast.triton_g2l_pairs.default"} <= used


# -- the option of the commands ---------------------------------------------------------------------------------------


def test_devices_by_name() -> None:
    assert named_device("cpu") == CPU
    assert named_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99", "meta", ""):
        with pytest.raises(InputError, match=rf"device: expected one of this machine: cpu.*, got {name}"):
            named_device(name)


def test_a_scorer_refuses_a_device_that_is_not_there() -> None:
    planted = plant("m3el")
    for device in ("cuda:99", torch.device("cuda", 99)):
        with pytest.raises(InputError, match=r"device: expected one of this machine: cpu.*, got cuda:99"):
            Scorer(planted.model, planted.index, device=device)
    assert Scorer(planted.model, planted.index, device=CPU).device == CPU


@pytest.mark.parametrize("command", [evaluate, link])
def test_commands_refuse_a_device_that_is_not_there(command: Any, tmp_path: Path) -> None:
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    (tmp_path / "in.jsonl").write_text('{"mention": "Elm", "sentence": "An elm"}\n')
    with pytest.raises(InputError, match=r"device: expected one of this machine: cpu.*, got cuda:99"):
        command.main(["no-checkpoint", "--device", "cuda:99", *(files if command is link else [])])
