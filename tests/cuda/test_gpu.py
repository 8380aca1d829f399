"""CUDA kernels as only a GPU can show them: graphs, streams, devices, compute-sanitizer, and sizes beyond 2^31."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import every_cuda_op
from every_cuda_op import CALLS, SELECTIONS, drawn, rerank
from m3el_fast import ops
from m3el_fast.ops import cuda, reference

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _there() -> None:
    if cuda.MISSING:
        pytest.skip(f"no CUDA kernels: {cuda.MISSING}")


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Bit by bit: the kernels are deterministic."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", CALLS)
def test_graph_replays_on_new_inputs(name: str) -> None:
    op, tensors = CALLS[name](0)
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):  # cuBLAS and the allocator warm up outside of the capture
        op(*tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = op(*tensors)
    for seed in (1, 2):
        _, fresh = CALLS[name](seed)
        for old, new in zip(tensors, fresh, strict=True):
            old.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        same(captured, op(*fresh))


@pytest.mark.parametrize("name", CALLS)
def test_runs_on_the_current_stream_behind_what_makes_its_inputs(name: str) -> None:
    op, expected_inputs = CALLS[name](3)
    expected = op(*expected_inputs)
    tensors = [torch.zeros_like(t) for t in expected_inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(500_000_000)  # a quarter of a second: on another stream the op would read zeros
        for old, new in zip(tensors, expected_inputs, strict=True):
            old.copy_(new)
        found = op(*tensors)
        found = [t.clone() for t in found]
    assert not stream.query()  # nothing here waited for the GPU
    stream.synchronize()
    same(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", CALLS)
def test_runs_on_the_device_of_its_tensors(name: str) -> None:
    op, tensors = CALLS[name](4)
    expected = op(*tensors)
    with torch.cuda.device(1):
        twin, there = CALLS[name](4)
    assert torch.cuda.current_device() == 0
    found = twin(*there)
    assert {t.device.index for t in found} == {1}
    assert torch.cuda.current_device() == 0
    same([t.cpu() for t in found], [t.cpu() for t in expected])


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer: it comes with the CUDA toolkit (cuda-sanitizer)")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")  # else a wild access lands in torch's own pool
    ours = ["--kernel-name", "kns=m3el", "--error-exitcode", "9"]  # the tools have known complaints about others'
    command = [sanitizer, "--tool", tool, *ours, sys.executable, every_cuda_op.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    if "Device not supported" in done.stdout + done.stderr:  # as in some virtual machines
        pytest.skip(f"{sanitizer} does not support this device")
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    assert all(name in done.stdout.splitlines() for name in CALLS)


# ----------------------------------------------------------------------------------------------------------------------
# Sizes beyond 2^31


def room(gigabytes: int) -> None:
    free = torch.cuda.mem_get_info()[0] >> 30
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GiB of GPU memory, {free} are free")


def planted(rows: int, columns: int, places: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros, and ``i + 1`` at the i-th place of the last row."""
    scores = torch.zeros(rows, columns, device="cuda", dtype=dtype)
    scores[-1, list(places)] = torch.arange(1.0, len(places) + 1, device="cuda").to(dtype)
    return scores


@pytest.mark.parametrize("k", [4, 300])
def test_row_of_the_largest_length(k: int) -> None:
    room(6)
    columns = 2**31 - 1
    places = [0, 2**30 + 1, columns - 2, columns - 1]
    scores = planted(1, columns, places, torch.bfloat16)
    values, ids = ops.topk(scores, k, backend="cuda")
    assert ids[0, :4].tolist() == places[::-1]
    assert values[0, :4].tolist() == [4, 3, 2, 1]
    assert ids[0, 4:].tolist() == list(range(1, k - 3))  # of the zeros those with the lowest ids
    assert not values[0, 4:].any()
    empty = torch.full_like(values, -torch.inf), torch.full_like(ids, -1)
    same(ops.topk_merge(*empty, scores, 0, backend="cuda"), [values, ids])


@pytest.mark.parametrize(("rows", "columns"), [(3, 2**30), (70_000, 40_000)])
def test_matrix_of_more_than_2_to_31_scores(rows: int, columns: int) -> None:
    room(8)
    places = [columns - 1, 5, columns // 2]
    scores = planted(rows, columns, places, torch.bfloat16)
    for first in (0, 10_000_000_000):
        values = torch.full((rows, 3), -torch.inf, device="cuda", dtype=torch.bfloat16)
        ids = torch.full((rows, 3), -1, device="cuda")
        values, ids = ops.topk_merge(values, ids, scores, first, backend="cuda")
        assert (ids[-1] - first).tolist() == places[::-1]
        assert values[-1].tolist() == [3, 2, 1]
        assert bool((ids[:-1] - first == torch.arange(3, device="cuda")).all())
    for k in (3, 300):
        ids = ops.topk(scores, k, backend="cuda")[1]
        assert ids[-1, :3].tolist() == places[::-1]
        assert bool((ids[:-1] == torch.arange(k, device="cuda")).all())


def test_index_of_more_than_2_to_31_values() -> None:
    room(12)
    op, tensors = rerank(torch.bfloat16, seed=5)
    mention, entity, candidates, row, *both = tensors
    expected = op(*tensors)
    far = 2**31 // (40 * 96) + 1_000  # the rows lie behind that many others
    moved = [torch.cat([t.new_zeros(far, *t.shape[1:]), t]) for t in (entity, both[0], both[1])]
    rows = torch.cat([row.new_zeros(far), row])
    there = candidates + far * (candidates >= 0)
    values, ids, parts = op(mention, moved[0], there, rows, *moved[1:], *both[2:])
    same([values, torch.where(ids < 0, ids, ids - far), parts], expected)


@pytest.mark.parametrize(("rows", "columns", "k", "dtype"), [s for s in SELECTIONS if s[0] > 1])
def test_selection_is_the_references(rows: int, columns: int, k: int, dtype: torch.dtype) -> None:
    """On real warps: ties, infinities and NaN at sizes that the emulator is too slow for."""
    scores = (drawn(rows, columns, seed=6) * 8).round().to(dtype)
    scores[:, ::13], scores[:, ::17], scores[-1, 5:] = torch.nan, torch.inf, torch.nan
    found = ops.topk(scores, k, backend="cuda")
    same([t.cpu() for t in found], reference.topk(scores.cpu(), k))
