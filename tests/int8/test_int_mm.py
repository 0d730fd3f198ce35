"""The integer product must be exact, not close: on every shape, by every way of computing it."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from int8 import int_mm, integer_backend, integer_product
from int8.int_mm import FLOAT32_INNER, MAX_INNER, float32_integer_product, padded_int_mm

Way = Callable[[Tensor, Tensor], Tensor]


def as_cuda_pads(a: Tensor, b: Tensor) -> Tensor:
    return padded_int_mm(a, b, min_rows=17, multiple=8)


needs_int_mm = pytest.mark.skipif(
    integer_backend("cpu") != "torch._int_mm", reason="torch._int_mm saturates or crawls on this CPU, so it is not used"
)
ways = pytest.mark.parametrize(
    "way", [integer_product, float32_integer_product, pytest.param(as_cuda_pads, marks=needs_int_mm)]
)


def random_codes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def exact(a: Tensor, b: Tensor) -> np.ndarray:
    return a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T


@ways
@pytest.mark.parametrize("rows", [1, 2, 5, 16, 17, 33])
def test_exact_on_every_shape(way: Way, rows):
    for inner, columns in product([1, 2, 3, 7, 8, 15, 64, 1041], [1, 3, 8, 17]):
        a, b = random_codes(rows, inner), random_codes(columns, inner, seed=1)
        result = way(a, b)
        assert result.dtype == torch.int32 and result.shape == (rows, columns)
        assert np.array_equal(result.numpy(), exact(a, b)), f"K = {inner}, N = {columns}"


@ways
@given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_exact_on_random_shapes(way: Way, rows, inner, columns, seed):
    a, b = random_codes(rows, inner, seed=seed), random_codes(columns, inner, seed=seed + 1)
    assert np.array_equal(way(a, b).numpy(), exact(a, b))


@ways
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("inner", [FLOAT32_INNER, FLOAT32_INNER + 1, 11008])
def test_extreme_codes_neither_saturate_nor_round(way: Way, sign, inner):
    a, b = torch.full((3, inner), 127, dtype=torch.int8), torch.full((5, inner), sign * 127, dtype=torch.int8)
    b[0, 0] = 0  # an odd sum, the first to be lost if float32 had to round
    result = way(a, b)
    assert result[0, 1] == sign * inner * 127**2
    assert result[2, 0] == sign * (inner - 1) * 127**2


@pytest.mark.parametrize("shape", [(0, 8, 4), (3, 0, 4), (3, 8, 0), (0, 0, 0)])
def test_empty_operands_give_zeros(shape):
    rows, inner, columns = shape
    result = integer_product(random_codes(rows, inner), random_codes(columns, inner))
    assert torch.equal(result, torch.zeros(rows, columns, dtype=torch.int32))


@ways
def test_any_strides(way: Way):
    wide, tall = random_codes(9, 48), random_codes(24, 11, seed=1)
    for a, b in [
        (wide[:, ::2], tall.t()),  # every other column; a transposed view
        (wide[:, :24].expand(9, 24), tall.t()[::2]),
        (wide[:1, :24], tall.t()),  # a single row with a stride of its own
        (random_codes(1, 24).expand(6, 24), tall.t()),  # stride 0
        (wide[:, :1], tall[:7, :1]),
    ]:
        assert np.array_equal(way(a, b).numpy(), exact(a, b))


@ways
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_exact_under_autocast(way: Way, dtype):
    a, b = random_codes(9, 300), random_codes(5, 300, seed=1)
    with torch.autocast("cpu", dtype=dtype):
        assert np.array_equal(way(a, b).numpy(), exact(a, b))


def test_longest_inner_dimension_fits_int32_and_no_longer():
    longest = torch.full((1, MAX_INNER), 127, dtype=torch.int8)
    assert integer_product(longest, longest).item() == MAX_INNER * 127**2 <= 2**31 - 1
    too_long = torch.full((1, MAX_INNER + 1), 127, dtype=torch.int8)
    assert (MAX_INNER + 1) * 127**2 > 2**31 - 1
    with pytest.raises(ValueError, match=r"133145.*overflow int32.*split"):
        integer_product(too_long, too_long)


def test_limits_follow_from_the_number_formats():
    assert MAX_INNER == 133_144
    assert FLOAT32_INNER == 1_040 and FLOAT32_INNER * 127**2 <= 2**24 < (FLOAT32_INNER + 1) * 127**2


def test_meta_device_gives_the_shape():
    result = integer_product(random_codes(3, 8).to("meta"), random_codes(4, 8).to("meta"))
    assert result.is_meta and result.shape == (3, 4) and result.dtype == torch.int32


SATURATION_CHECK = """
import torch
from int8 import int_mm, integer_backend, integer_product
a, b = torch.full((4, 256), 127, dtype=torch.int8), torch.full((8, 256), 127, dtype=torch.int8)
assert (integer_product(a, b) == 256 * 127**2).all(), integer_product(a, b)
print(integer_backend("cpu"))
"""


def test_a_cpu_without_vnni_is_found_out():
    """oneDNN can be told to do without newer instructions: the product stays exact whatever its kernel then does."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SATURATION_CHECK], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() in {"torch._int_mm", "float32 slices"}


@pytest.mark.parametrize(
    ("of_int_mm", "way"), [(3.0, "float32 slices"), (1.5, "torch._int_mm"), (0.5, "torch._int_mm")]
)
def test_an_exact_kernel_that_crawls_is_given_up(monkeypatch, of_int_mm, way):
    """As where a CPU has AVX2 at most: a loop, thirty times slower than products of floats."""
    monkeypatch.setattr(int_mm, "_int_mm_is_exact", lambda device_type: True)
    monkeypatch.setattr(int_mm, "_seconds", lambda way: of_int_mm if way is int_mm.padded_int_mm else 1.0)
    int_mm._int_mm_serves.cache_clear()
    try:
        assert int_mm.integer_backend("cpu") == way
    finally:
        int_mm._int_mm_serves.cache_clear()
