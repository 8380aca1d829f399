"""What the forward and backward kernels of global-to-local scores share: tile sizes, loads and streamed products."""

from __future__ import annotations

import triton
import triton.language as tl

from .cases import Tiles, launch_options

_SHARED_BYTES = 96 * 1024  # of a block; every GPU since sm_80 has them


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def split(n: int, least: int) -> tuple[int, int]:
    """Two powers of two, from ``least`` on (the second may be 0), that hold n with least padding: 64 + 32 for 96."""
    first = max(least, 1 << (n.bit_length() - 1))
    second = max(least, _power_of_2(n - first)) if n > first else 0
    return (first, second) if second < first else (2 * first, 0)


def forward_tiles(columns: int, d: int, item: int, most: int = 4) -> Tiles:
    """Tiles of :func:`g2l_fwd_kernel`.

    Args:
        columns: Lm; item: bytes of a key's value; most: mentions of a program.

    Where no tile fits, keys are read in sections (STREAM) and the column means leave the kernel.
    """
    n1, n2 = split(columns, 8)
    d1, d2 = split(d, 16)
    # two programs of 4 warps on a multiprocessor: the products of one run beside the softmax of the other
    shapes = [(4, 64), (2, 64)] * (item == 2) + [(1, 64), (1, 32), (1, 16)]
    if item == 4 and d1 + d2 > 128:  # each query is split in two: more do not fit the registers
        shapes = []
    constexprs = {"N1": n1, "N2": n2, "D1": d1, "D2": d2, "STREAM": 0}
    for mentions, rows in shapes:
        values = rows * mentions * (n1 + n2) // 128  # logits of a thread, and as many column means
        shared = (mentions * (n1 + n2) + rows) * (d1 + d2) * item
        if mentions <= most and values <= 80 and shared <= _SHARED_BYTES:
            sizes = {"ROWS": rows, "MB": mentions}
            return Tiles(sizes | constexprs, launch_options(4, 2))
    sizes = {"ROWS": 16, "MB": 1} | constexprs | {"D1": 16, "D2": 0, "STREAM": 1}
    return Tiles(sizes, launch_options(8, 1))


def backward_tiles(columns: int, d: int, exact: bool) -> Tiles:
    """Tiles of the backward kernels for Lm ``columns``.

    Args:
        exact: gradients' products in fp32. Their operands take three times the registers: a program sums 32 dimensions
            of the gradient, and computes the attention from sections of the keys for itself.
    """
    d1, d2 = split(d, 16)
    both = split(columns, 8)
    one = (max(16, _power_of_2(columns)), 0)
    shapes = [] if exact else [(2, both, 64)] * (both[1] > 0) + [(1, one, rows) for rows in (64, 32, 16)]
    for mentions, (n1, n2), rows in shapes:
        n, width = mentions * (n1 + n2), d1 + d2
        # logits, slopes, gradients, and the sum, of a thread
        values = (3 * rows * n + max(rows, n) * width) // 128
        shared = (2 * n + rows) * width * 2 + rows * n * 2
        if values <= 180 and shared <= _SHARED_BYTES:
            sizes = {"ROWS": rows, "MB": mentions, "N1": n1, "N2": n2, "D1": d1, "D2": d2, "STREAM": 0}
            return Tiles(sizes, launch_options(4, 2))
    rows, section = (64, min(32, d1)) if one[0] <= 64 else (16, 16)
    sizes = {"ROWS": rows, "MB": 1, "N1": one[0], "N2": 0, "D1": section, "D2": 0, "STREAM": 1}
    return Tiles(sizes, launch_options(8, 1))


@triton.jit
def load_keys(key, mention, token, M, Lm, dim, d, EVEN_D: tl.constexpr):
    """[D, columns] of key [M, Lm, d]; zero where there is no such token, mention or dimension."""
    there = (mention < M) & (token < Lm)
    at = key + (mention.to(tl.int64) * Lm + token)[None, :] * d + dim[:, None]
    if EVEN_D:
        return tl.load(at, mask=there[None, :], other=0.0)
    return tl.load(at, mask=there[None, :] & (dim < d)[:, None], other=0.0)


@triton.jit
def load_rows(rows, dim, d, EVEN_D: tl.constexpr):
    """[rows, D] of the rows that start at the pointers ``rows``; zero beyond d."""
    if EVEN_D:
        return tl.load(rows[:, None] + dim[None, :])
    return tl.load(rows[:, None] + dim[None, :], mask=(dim < d)[None, :], other=0.0)


@triton.jit
def stream_logits(
    q_row,
    key,
    mention,
    token,
    M,
    Lm,
    d,
    D: tl.constexpr,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Products [rows, columns] of the query rows at ``q_row`` and the keys, D dimensions at a time."""
    logits = tl.zeros([q_row.shape[0], token.shape[0]], tl.float32)
    for start in range(0, d, D):
        dim = start + tl.arange(0, D)
        q = load_rows(q_row, dim, d, EVEN_D).to(key.dtype.element_ty)
        k = load_keys(key, mention, token, M, Lm, dim, d, EVEN_D)
        logits = tl.dot(q, k, logits, input_precision=PRECISION)
    return logits


@triton.jit
def columns(mention, token, key_mask, M, Lm, N: tl.constexpr, MB: tl.constexpr, HAS_MASK: tl.constexpr):
    """[MB, N] bool: which columns of a part are tokens that take part."""
    valid = token < Lm
    if HAS_MASK:  # a mention that is not there has no mask: it takes part and its scores are dropped
        at = key_mask + tl.minimum(mention, M - 1).to(tl.int64) * Lm + token
        valid = tl.load(at, mask=valid, other=0) != 0
    return valid.reshape(MB, N)
