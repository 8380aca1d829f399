"""The host emulator: right kernels pass, planted faults are reported, words mean what CUDA says they mean."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cuda_host.build import HERE, compiler
from cuda_host.trial import RAMP, run

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")
SEEDS = range(20)


def result(kernel: str, n: int = 0, seed: int = 0, given: Tensor = RAMP) -> Tensor:
    findings, out = run("values", kernel, n, seed, given)
    assert not findings
    return out


RIGHT: dict[str, Callable[[Tensor], bool]] = {
    "sum": lambda out: out[0].item() == RAMP.sum().item(),
    "warp_exchange": lambda out: torch.equal(out[:64], RAMP[:64].view(32, 2).flip(1).flatten()),
    "half_warp_exchange": lambda out: torch.equal(out[:64], RAMP[:64].view(32, 2).sum(1).repeat_interleave(2)),
    "bytes": lambda out: torch.equal(out[:64], RAMP[:64].view(32, 2).flip(1).flatten()),
    "atomics": lambda out: bool((out[:8] == 32).all()),
    "lock": lambda out: out[0].item() == 1,
    "copies": lambda out: torch.equal(out, torch.cat([RAMP[:128], RAMP[128:].view(16, 2, 4).flip(1).flatten()])),
    "two_launches": lambda out: torch.equal(out[:64], RAMP[:64]),
    "barrier_after_exit": lambda out: bool((out[:40] == 20).all()),
}


@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernels_pass_in_every_order(kernel: str) -> None:
    for seed in SEEDS:
        findings, out = run("faults", kernel, n=256, seed=seed)
        assert not findings
        assert RIGHT[kernel](out)


FAULTS = [
    ("no_barrier", 0, "race: block (0, 0, 0), thread", "no barrier between"),
    ("no_barrier_before_write", 0, "race: ", "no barrier between"),
    ("no_warp_barrier", 0, "race: ", "of shared memory (128 bytes)"),
    ("warp_barrier_between_warps", 0, "race: ", "no barrier between"),
    ("half_warp_race", 0, "race: ", "no barrier between"),
    ("bytes_race", 0, "race: ", "no barrier between"),
    ("two_writers", 0, "race: ", "writes 4 bytes"),
    ("global_race", 0, "race: ", "of an output"),
    ("atomics_race", 0, "race: ", "updated"),
    ("blocks_race", 0, "race between blocks: ", "byte 0 of an output"),
    ("blocks_atomics", 2, "race between blocks: ", "byte 0 of an output"),
    ("blocks_read_race", 1, "race between blocks: ", "of an output"),
    ("shared_overrun", 1, "out of bounds: ", "thread 31 reads 4 bytes at byte 128 of shared memory (128 bytes)"),
    ("input_overrun", 225, "out of bounds: ", "thread 31 reads 4 bytes at byte 1024 of an input"),
    ("output_overrun", -1, "out of bounds: ", "thread 0 writes 4 bytes at byte -4 of an output"),
    ("output_overrun", 225, "out of bounds: ", "thread 31 writes 4 bytes at byte 1024 of an output"),
    ("null_read", 0, "out of bounds: ", "no tensor is near"),
    ("local_overrun", 5, "out of bounds: ", "takes element 4 of an array"),
    ("other_stack", 0, "out of bounds: ", "the stack of thread"),
    ("input_write", 3, "write to an input: ", "writes 4 bytes at byte 12 of an input"),
    ("uninitialised_shared", 0, "uninitialised read: ", "thread 5 reads 4 bytes at byte 20 of shared memory"),
    ("uninitialised_output", 0, "uninitialised read: ", "of an output"),
    ("copy_used_early", 0, "cp.async data before the wait: ", "of shared memory"),
    ("copy_without_barrier", 0, "race: ", "no barrier between"),
    ("copy_barrier_too_early", 0, "race: ", "no barrier between"),
    ("copy_misaligned", 0, "misaligned: ", "reads 16 bytes at byte 4 of an input"),
    ("copy_overrun", 1, "misaligned: ", "copies 16 bytes at byte 4 of shared memory"),
    ("copy_overrun", 4, "out of bounds: ", "copies 16 bytes at byte 16 of shared memory (16 bytes)"),
    ("misaligned", 1, "misaligned: ", "16 bytes at byte 4 of an input"),
    ("load_once_written", 0, "load_once of memory written in this launch: ", "of an output"),
    ("divergent_barrier", 0, "divergent barrier: ", "came to another __syncthreads"),
    ("barrier_against_collective", 0, "deadlock: ", "thread 3 at the block's barrier"),
    ("collective_elsewhere", 0, "deadlock: ", "at a warp's collective, which lacks threads 0, 2, 4"),
    ("absent_lane", 0, "deadlock: ", "at a warp's collective, which lacks thread 7"),
    ("short_warp", 0, "deadlock: ", "which lacks threads 40-63"),
    ("lane_outside_mask", 0, "shuffle from an absent lane: ", "from lane 20"),
    ("other_mask", 0, "deadlock: ", "at a warp's collective, which lacks threads 0, 2, 4"),
    ("too_many_threads", 0, "too_many_threads: ", "1025 threads"),
    ("too_much_shared", 0, "too_much_shared: ", "232449 bytes of shared memory"),
    ("no_blocks", 0, "no_blocks: ", "a grid of 0"),
]


@pytest.mark.parametrize(("kernel", "n", "kind", "words"), FAULTS, ids=[f"{fault[0]}-{fault[1]}" for fault in FAULTS])
def test_planted_faults_are_reported_in_every_order(kernel: str, n: int, kind: str, words: str) -> None:
    given = RAMP.clone()
    for seed in SEEDS:
        findings, _ = run("faults", kernel, n, seed, given)
        assert kind in findings
        assert words in findings
        assert kernel in findings
    assert torch.equal(given, RAMP)
    assert not run("faults", "sum", 256)[0]  # the emulator goes on


def test_an_output_is_no_input() -> None:
    both = torch.zeros(512)
    assert "an output shares memory with an input" in run("faults", "sum", given=both[:256], out=both[255:])[0]
    assert not run("faults", "sum", 256, given=both[:256], out=both[256:])[0]


@pytest.mark.skipif(not shutil.which("addr2line"), reason="no addr2line")
def test_findings_name_the_lines_of_both_accesses() -> None:
    source = (HERE / "planted/faults.cu").read_text().splitlines()
    first = next(i for i, line in enumerate(source, 1) if "void global_race" in line)
    findings, _ = run("faults", "global_race")
    assert f"faults.cu:{first + 2}" in findings
    assert f"faults.cu:{first + 1}" in findings


def operands(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """bf16 a [16, 16] and b [16, 8], fp32 c [16, 8] as the kernel ``mma`` wants them."""
    pairs = torch.cat([a.flatten(), b.T.flatten()]).contiguous().view(torch.float32)
    return torch.cat([pairs, c.flatten()])


def test_mma_is_the_matrix_product() -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in SEEDS:
        a = torch.randn(16, 16, generator=generator).bfloat16()
        b = torch.randn(16, 8, generator=generator).bfloat16()
        c = torch.randn(16, 8, generator=generator)
        got = result("mma", seed=seed, given=operands(a, b, c))[:128].view(16, 8)
        # products are exact, 17 rounded sums of terms below 16 in all
        torch.testing.assert_close(got.double(), a.double() @ b.double() + c.double(), rtol=0, atol=17 * 2**-20)


def test_mma_places_every_element() -> None:
    zero = torch.zeros(16, 8)
    for row in range(16):
        for k in range(16):
            a = torch.zeros(16, 16, dtype=torch.bfloat16)
            a[row, k] = 1
            b = (torch.arange(128).view(16, 8) + 1).bfloat16()
            got = result("mma", given=operands(a, b, zero))[:128].view(16, 8)
            assert torch.equal(got, a.float() @ b.float())


@pytest.mark.parametrize("n", [0, 1, 3, 5, 7])
def test_shuffles(n: int) -> None:
    out = result("shuffles", n)[:160].view(5, 32)
    lane = torch.arange(32)
    within = lane % 8
    expected = [
        lane - within + n,
        torch.where(within >= n, lane - n, lane),
        torch.where(within + n < 8, lane + n, lane),
        lane ^ n,
        lane ^ n,
    ]
    assert torch.equal(out, torch.stack(expected).float())


@pytest.mark.parametrize("n", [-40, 0, 3])
def test_votes_and_reductions(n: int) -> None:
    values = torch.randint(-30, 30, (32,), generator=torch.Generator().manual_seed(1))
    for seed in SEEDS:
        out = result("votes", n, seed, values.float()).view(8, 32)
        for parity in range(2):
            own = values[parity::2]
            unsigned = own % 2**32
            expected = [
                (own > n).sum(),
                (own > n).any(),
                (own > n).all(),
                own.sum(),
                own.max(),
                own.min(),
                unsigned.max() >> 16,
                unsigned.min() >> 16,
            ]
            assert out[:, parity::2].tolist() == [[float(value)] * 16 for value in expected]


def test_barrier_votes() -> None:
    for n, expected in [(-1, [48, 1, 1]), (30, [17, 1, 0]), (47, [0, 0, 0])]:
        assert result("barrier_votes", n)[:3].tolist() == expected


def test_atomics() -> None:
    n = 100
    values = (RAMP[:64] - 20)[None] * torch.arange(1, 5)[:, None]
    expected = [n + values.sum(), max(values.max(), n), min(values.min(), n), 7, n + 1 + 2 * values.numel()]
    for seed in SEEDS:
        words = result("atomics", n, seed, RAMP - 20)[:5].view(torch.int32)
        assert words.tolist() == [int(value) for value in expected]


def test_pack_rounds_to_nearest_even() -> None:
    special = [0.0, -0.0, torch.inf, -torch.inf, 1.00390625, 1.01171875, 3.4e38, 3.3e38, 1e-40, -1e-45]
    given = torch.cat([torch.tensor(special), torch.randn(246, generator=torch.Generator().manual_seed(2))])
    assert torch.equal(result("pack", given=given)[:128].view(torch.int16), given.bfloat16().view(torch.int16))
    nan = result("pack", given=torch.full((256,), torch.nan))[:128]
    assert nan.view(torch.bfloat16).isnan().all()


def test_bits() -> None:
    n = 0b0000_0110_0000_0000_0000_0000_0001_0100
    assert result("bits", n)[:4].tolist() == [4, 5, 3, 0b0010_1000_0000_0000]
