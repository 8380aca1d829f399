"""The corrections of Triton's interpreter that the other tests rely on."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")


@triton.jit
def _product_kernel(a, b, out, rounded, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    product = tl.dot(tl.load(a + at), tl.load(b + at))
    tl.store(out + at, product)
    tl.store(rounded + at, product.to(rounded.dtype.element_ty))


def test_bf16_products_and_casts(device: str) -> None:
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(s)).bfloat16().to(device) for s in (0, 1))
    out, rounded = torch.empty(16, 16, device=device), torch.empty(16, 16, dtype=torch.bfloat16, device=device)
    _product_kernel[(1,)](a, b, out, rounded, N=16)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=0, atol=1e-5)  # sums of 16 in fp32
    assert torch.equal(rounded, out.bfloat16())
