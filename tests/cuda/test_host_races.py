"""The emulator's race detector against the definition: random programs, whose order is worked out pair by pair."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from cuda_host.build import compiler
from cuda_host.trial import run

pytestmark = pytest.mark.skipif(not compiler(), reason="no C++ compiler")
THREADS, BYTES = 64, 12
CASES = 800
# kinds of program.cu -> bytes, whether it writes, whether it is atomic
ACCESSES = {1: (1, False, False), 2: (2, False, False), 3: (4, False, False)}
ACCESSES |= {4: (1, True, False), 5: (2, True, False), 6: (4, True, False), 7: (4, True, True)}
GROUPS = {8: lambda t: 0, 9: lambda t: t // 32, 10: lambda t: t // 16, 11: lambda t: (t // 32, t % 2)}
Program = list[list[int]]


def random_program(rng: random.Random) -> Program:
    """Steps of codes of 64 threads: accesses by a few threads, and barriers of all."""
    active = rng.sample(range(THREADS), rng.choice([2, 3, 6]))
    if rng.random() < 0.5:
        active = [t % 4 + t // 16 % 2 * 16 for t in active]  # of one warp's halves
    kinds = rng.choice([[1, 2, 3, 4, 5, 6, 7], [1, 3, 4], [3, 6], [3, 7], [3, 3, 3, 6], [1, 2, 3, 4]])
    barriers = rng.choice([[8, 9, 9, 10, 11], [9], [10, 11]])
    size = rng.choice([4, BYTES])
    steps = []
    for _ in range(rng.randint(4, 12)):
        if rng.random() < 0.5:
            steps.append([rng.choice(barriers)] * THREADS)
            continue
        step = [0] * THREADS
        for t in active:
            if rng.random() < 0.4:
                kind = rng.choice(kinds)
                step[t] = kind + 16 * rng.randrange(0, size, ACCESSES[kind][0])
        steps.append(step)
    return steps


def has_race(program: Program) -> bool:
    """Whether two accesses of one block conflict without a chain of barriers between them."""
    # seen[t][u]: how many of u's steps happened before what t does now
    seen = [[0] * THREADS for _ in range(THREADS)]
    done: list[tuple[int, int, int]] = []  # step, thread, code
    for at, step in enumerate(program):
        if step[0] in GROUPS:
            group = GROUPS[step[0]]
            for _, members in itertools.groupby(sorted(range(THREADS), key=group), key=group):
                lanes = list(members)
                joined = [max(at if u == t else seen[t][u] for t in lanes) for u in range(THREADS)]
                for t in lanes:
                    seen[t] = joined
            continue
        for t, code in enumerate(step):
            if code == 0:
                continue
            for before, u, other in done:
                if u != t and before >= seen[t][u] and conflict(code, other):
                    return True
            done.append((at, t, code))
    return False


def conflict(a: int, b: int) -> bool:
    (size_a, write_a, atomic_a), (size_b, write_b, atomic_b) = ACCESSES[a % 16], ACCESSES[b % 16]
    first_a, first_b = a // 16, b // 16
    overlap = first_a < first_b + size_b and first_b < first_a + size_a
    return overlap and (write_a or write_b) and not (atomic_a and atomic_b)


def blocks_race(programs: list[Program]) -> bool:
    codes = [{code for step in program for code in step if code % 16 in ACCESSES} for program in programs]
    return any(conflict(a, b) for a, b in itertools.product(*codes))


@pytest.mark.parametrize("kernel", ["in_shared", "in_global_of_one_block"])
def test_races_of_threads_are_found_and_nothing_else(kernel: str) -> None:
    rng = random.Random(0)
    verdicts = []
    for case in range(CASES):
        program = random_program(rng)
        expected = has_race(program)
        verdicts.append(expected)
        given = torch.tensor(program, dtype=torch.int32)
        for seed in range(case, case + 2):
            findings, _ = run("program", kernel, len(program), seed, given)
            assert ("race" in findings) == expected, f"case {case} seed {seed}: expected {expected}, got {findings}"
            assert bool(findings) == expected
    assert CASES / 4 < sum(verdicts) < CASES * 3 / 4


def test_races_of_blocks_are_found_and_nothing_else() -> None:
    rng = random.Random(1)
    verdicts = []
    for case in range(CASES):
        programs = [random_program(rng) for _ in range(2)]
        length = min(map(len, programs))
        programs = [program[:length] for program in programs]
        if any(map(has_race, programs)):
            continue
        expected = blocks_race(programs)
        verdicts.append(expected)
        for seed in range(case, case + 2):
            findings, _ = run("program", "in_global", length, seed, torch.tensor(programs, dtype=torch.int32))
            assert ("race between blocks" in findings) == expected, f"case {case} seed {seed}: {findings}"
            assert bool(findings) == expected
    assert 20 < sum(verdicts) < len(verdicts) - 20
