"""Triton kernels with a fault each, for the tests of .ci/compile_kernels.py."""

from __future__ import annotations

import triton
import triton.language as tl
from m3el_fast.kernels.cases import CompileCase


@triton.jit
def product_kernel(a, b, out, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STEPS: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    for step in range(STEPS):
        left = tl.load(a + m * (K * STEPS) + step * K + k[None, :])
        right = tl.load(b + (step * K + k)[:, None] * N + n)
        total = tl.dot(left, right, total)
    tl.store(out + m * N + n, total)


@triton.jit
def double_kernel(a, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, _twice(tl.load(a + i)))


@triton.jit
def _twice(x):
    return x + x


@triton.jit
def forgotten_kernel(a, N: tl.constexpr):
    tl.store(a + tl.arange(0, N), 0.0)


_PRODUCT = {"a": "*bf16", "b": "*bf16", "out": "*fp32"}


def _product(name: str, m: int, n: int, k: int, **options: int) -> CompileCase:
    sizes = {"M": m, "N": n, "K": k, "STEPS": 4}
    return CompileCase(product_kernel, name, _PRODUCT, sizes, {"num_warps": 4, "num_stages": 1} | options)


COMPILE_CASES = [
    _product("sound", 64, 64, 64),
    _product("spills", 32, 128, 64, maxnreg=32)._replace(wgmma=False),
    _product("too much shared memory", 64, 128, 256, num_stages=3),
    _product("16 rows", 16, 64, 64),
    CompileCase(double_kernel, "no products", {"a": "*fp32", "out": "*fp32"}, {"N": 128}, {"num_warps": 4}),
    CompileCase(double_kernel, "does not compile", {"a": "*fp32", "out": "*fp32"}, {"N": 100}, {"num_warps": 4}),
]
