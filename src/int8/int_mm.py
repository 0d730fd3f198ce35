"""The exact product of two int8 matrices, int8 × int8 → int32: the inner loop of LLM.int8().

A sum of K products of codes within ±127 is an integer within ±127²·K. It fits int32 up to K = 133,144 and float32's
24-bit significand up to K = 1,040. Two ways to compute it follow from that, and both give the same integers:

- `torch._int_mm`: the tensor cores of a GPU, the VNNI instructions of a CPU.
- float32 products of slices of at most 1,040 columns, each exact in whatever order it is summed, added up in int32.

`torch._int_mm` is not taken on trust. On CPUs without VNNI its kernel adds pairs of products in 16 bits, which
saturate: 127·127 + 127·127 comes out wrong, silently (seen in torch 2.13 with oneDNN held to AVX2 or plain AVX-512).
So it is tried once per kind of device, on operands at the ends of the range, and used only if it gets them right. And
it is timed: on a CPU with AVX2 at most it is exact, and a loop that takes thirty times as long as the slices.

Letters: M rows of a, N rows of b, K the inner dimension.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from int8.quantize import INT8_MAX

MAX_INNER = (2**31 - 1) // INT8_MAX**2
"""Longest inner dimension, 133,144, whose sums are sure to fit int32."""

FLOAT32_INNER = 2**24 // INT8_MAX**2
"""Longest inner dimension, 1,040, whose sums are sure to be exact in float32."""

SLOWER = 2
"""`torch._int_mm` is given up where it takes longer than so many times the slices' time."""

# What cuBLASLt asks of `torch._int_mm`: more than 16 rows, and K and N multiples of 8.
CUDA_MIN_ROWS = 17
CUDA_MULTIPLE = 8


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """a · bᵀ, exactly. Shapes: a (M, K) int8, b (N, K) int8 -> (M, N) int32. Any size, zero included, any strides.

    Raises:
        ValueError: K exceeds 133,144, where int32 could overflow.

    >>> a = torch.tensor([[127, -127, 64]], dtype=torch.int8)
    >>> integer_product(a, a)  # 127² + 127² + 64²
    tensor([[36354]], dtype=torch.int32)
    """
    (rows, inner), columns = a.shape, b.shape[0]
    if inner > MAX_INNER:
        raise ValueError(f"inner dimension {inner} could overflow int32: split the matrix at {MAX_INNER} columns")
    if a.is_meta or rows * inner * columns == 0:
        return torch.zeros(rows, columns, dtype=torch.int32, device=a.device)
    if not _int_mm_serves(a.device.type):
        return float32_integer_product(a, b)
    if a.is_cuda:
        return padded_int_mm(a, b, min_rows=CUDA_MIN_ROWS, multiple=CUDA_MULTIPLE)
    # With K = 1 the transposed view of b has strides (1, 1), and the CPU kernel reads it as if it weren't transposed.
    return padded_int_mm(a, b, multiple=8 if inner == 1 else 1)


def integer_backend(device: torch.device | str) -> str:
    """Which way `integer_product` goes on this device, for a program to print."""
    return "torch._int_mm" if _int_mm_serves(torch.device(device).type) else "float32 slices"


def padded_int_mm(a: Tensor, b: Tensor, *, min_rows: int = 1, multiple: int = 1) -> Tensor:
    """`torch._int_mm(a, bᵀ)` with zero rows and columns appended as a kernel demands, and cut off again.

    Args:
        a: (M, K) int8.
        b: (N, K) int8.
        min_rows: M is padded up to this.
        multiple: K and N are padded to multiples of this.
    """
    (rows, inner), columns = a.shape, b.shape[0]
    add_inner, add_columns = -inner % multiple, -columns % multiple
    add_rows = max(min_rows - rows, 0)
    if add_inner or add_rows:
        a = F.pad(a, (0, add_inner, 0, add_rows))
    if add_inner or add_columns:
        b = F.pad(b, (0, add_inner, 0, add_columns))
    # Both orders of b suit a CPU's kernel; a GPU's was seen to refuse the other one.
    b_transposed = b.t() if b.t().is_contiguous() and not b.is_cuda else b.contiguous().t()
    return torch._int_mm(a.contiguous(), b_transposed)[:rows, :columns]


def float32_integer_product(a: Tensor, b: Tensor) -> Tensor:
    """The same product by float32 matrix products that cannot round. Shapes as for `integer_product`."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    with without_autocast(a.device):  # which would round the sums to 16 bits
        for a_slice, b_slice in zip(a.split(FLOAT32_INNER, dim=1), b.split(FLOAT32_INNER, dim=1), strict=True):
            total += (a_slice.float() @ b_slice.float().t()).to(torch.int32)
    return total


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, a product has the dtype of its operands."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@cache
def _int_mm_serves(device_type: str) -> bool:
    """Exact, and on a CPU no mere loop. Either way gives the same integers, so a close contest may end as it likes."""
    return _int_mm_is_exact(device_type) and (
        device_type != "cpu" or _seconds(padded_int_mm) < SLOWER * _seconds(float32_integer_product)
    )


def _seconds(way: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The shortest of three products of a size at which one takes a millisecond or less, if it is any good."""
    a, b = torch.ones(128, 256, dtype=torch.int8), torch.ones(256, 256, dtype=torch.int8)

    def once() -> float:
        started = time.perf_counter()
        way(a, b)
        return time.perf_counter() - started

    return min(once() for _ in range(4))


@cache
def _int_mm_is_exact(device_type: str) -> bool:
    """Try `torch._int_mm` where a kernel that saturates must fail: one row, few and a full tile, b in both orders."""
    if device_type == "meta":
        return True
    inner = 64
    signs = torch.tensor([1, -1], dtype=torch.int8, device=device_type).repeat(16)  # (32,)
    extremes = (INT8_MAX * signs)[:, None].repeat(1, inner)  # each row all 127 or all −127
    orders = (extremes, extremes.t().contiguous().t())  # a weight as it is stored, and as its gradient reads it
    for rows, b in product((1, 2, 32), orders):
        expected = inner * INT8_MAX**2 * signs[:rows, None].int() * signs.int()
        try:
            found = padded_int_mm(extremes[:rows], b, min_rows=CUDA_MIN_ROWS if device_type == "cuda" else 1)
        except RuntimeError:  # NotImplementedError included: this device has no such kernel
            return False
        if not torch.equal(found, expected):
            return False
    return True
