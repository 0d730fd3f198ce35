"""Row-wise and column-wise absmax against the formula, hand numbers and the properties a quantizer must have."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import int8 as oracle

from int8 import INT8_MAX, dequantize_rowwise, outlier_columns, quantize_columnwise, quantize_rowwise
from int8.quantize import SMALLEST_ABSMAX

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Three float32 roundings (a reciprocal, two products) of a value up to 127: a code may miss the nearest by this much.
CODE_ROUNDING = 127 * 3 * 2.0**-24

matrices = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)
property_test = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def test_numbers_worked_by_hand():
    # Row 1: 127·(1, −2)/2 = (63.5, −127), and the tie goes to the even code. Row 2: 127·(0.5, 1)/1.
    codes, absmax = quantize_rowwise(torch.tensor([[1.0, -2.0], [0.5, 1.0]]))
    assert codes.tolist() == [[64, -127], [64, 127]]
    assert absmax.tolist() == [2.0, 1.0]
    assert codes.dtype == torch.int8 and absmax.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (7, 33), (128, 257)])
def test_codes_and_scales_equal_the_oracle(dtype, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes, absmax = quantize_rowwise(x)
    expected_codes, expected_absmax = oracle.quantize_rows(x.double().numpy())
    scaled = 127 * x.double().numpy() / expected_absmax[:, None]
    clear = np.abs(scaled - np.floor(scaled) - 0.5) > CODE_ROUNDING  # not a tie that float32 may decide otherwise
    assert clear.mean() > 0.5
    assert np.array_equal(codes.numpy()[clear], expected_codes[clear])
    assert np.abs(codes.numpy() - scaled).max() <= 0.5 + CODE_ROUNDING
    assert np.array_equal(absmax.double().numpy(), expected_absmax)


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_error_is_half_a_step(dtype, check_bound):
    x = torch.randn(64, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
    codes, absmax = quantize_rowwise(x)
    half_step = absmax.double()[:, None] / 254
    error = (dequantize_rowwise(codes, absmax).double() - x.double()).abs()
    # Besides half a step: the code's own rounding, and two float32 roundings of a decoded value up to absmax.
    check_bound("int8 row-wise round trip, steps", (error / (2 * half_step)).max(), 0.5 + CODE_ROUNDING + 127 * 2**-23)


@given(matrices)
@property_test
def test_every_code_is_the_nearest_and_monotone(values):
    x = torch.from_numpy(values)
    codes, absmax = quantize_rowwise(x)
    assert codes.abs().max() <= INT8_MAX
    scaled = 127 * x.double() / absmax.double()[:, None]
    assert (codes.double() - scaled).abs().max() <= 0.5 + CODE_ROUNDING
    for row, row_codes in zip(x, codes, strict=True):
        order = row.argsort()
        assert (row_codes[order].int().diff() >= 0).all()
    nonzero = x.abs().amax(1) >= SMALLEST_ABSMAX
    assert (codes.int().abs().amax(1) == INT8_MAX)[nonzero].all()  # the largest entry takes the largest code


@given(matrices, st.integers(-20, 20))
@property_test
def test_powers_of_two_and_signs_scale_through(values, exponent):
    values[np.abs(values) < 1e-20] = 0  # so that no scale meets its floor
    x, factor = torch.from_numpy(values), 2.0**exponent
    codes, absmax = quantize_rowwise(x)
    scaled_codes, scaled_absmax = quantize_rowwise(x * factor)
    assert torch.equal(codes, scaled_codes)
    nonzero = (x != 0).any(1)
    assert torch.equal((absmax * factor)[nonzero], scaled_absmax[nonzero])
    assert torch.equal(quantize_rowwise(-x)[0], -codes)


@given(matrices)
@property_test
def test_decoded_values_quantize_to_the_same_codes(values):
    x = torch.from_numpy(values)
    codes, absmax = quantize_rowwise(x)
    again, absmax_again = quantize_rowwise(dequantize_rowwise(codes, absmax))
    assert torch.equal(again, codes)
    nonzero = codes.any(1)
    assert ((absmax_again - absmax).abs()[nonzero] <= 2**-22 * absmax[nonzero]).all()


def test_columnwise_is_rowwise_of_the_transpose():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    codes, absmax = quantize_columnwise(x)
    codes_t, absmax_t = quantize_rowwise(x.T)
    assert torch.equal(codes, codes_t.T) and torch.equal(absmax, absmax_t)
    assert torch.equal(absmax, x.abs().amax(0))


def test_any_leading_dimensions_and_strides():
    x = torch.randn(3, 8, 10, generator=torch.Generator().manual_seed(3))
    codes, absmax = quantize_rowwise(x)
    assert codes.shape == (3, 8, 10) and absmax.shape == (3, 8)
    flat_codes, flat_absmax = quantize_rowwise(x.reshape(24, 10))
    assert torch.equal(codes.reshape(24, 10), flat_codes) and torch.equal(absmax.reshape(24), flat_absmax)
    strided_codes, strided_absmax = quantize_rowwise(x.transpose(0, 1))
    assert torch.equal(strided_codes, codes.transpose(0, 1)) and torch.equal(strided_absmax, absmax.T)
    vector_codes, vector_absmax = quantize_rowwise(x[0, 0])
    assert torch.equal(vector_codes, codes[0, 0]) and torch.equal(vector_absmax, absmax[0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_of_tiny_numbers(dtype):
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([[0.0, 0.0], [-0.0, 0.0], [tiny, -tiny], [1.0, tiny]], dtype=dtype)
    codes, absmax = quantize_rowwise(x)
    assert codes[:2].tolist() == [[0, 0], [0, 0]] and codes[3].tolist() == [127, 0]
    decoded = dequantize_rowwise(codes, absmax)
    assert decoded.isfinite().all()
    assert ((decoded - x.float()).abs() <= absmax[:, None] / 254 * (1 + 2**-16)).all()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 0, 3)])
def test_nothing_to_quantize(shape):
    codes, absmax = quantize_rowwise(torch.empty(shape))
    assert codes.shape == shape and absmax.shape == shape[:-1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_entry_shows_in_its_row_only(bad):
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(4))
    clean_codes, clean_absmax = quantize_rowwise(x)
    x[1, 2] = bad
    codes, absmax = quantize_rowwise(x)
    assert absmax.isfinite().tolist() == [True, False, True]
    assert not dequantize_rowwise(codes, absmax)[1].isfinite().any()
    for row in (0, 2):
        assert torch.equal(codes[row], clean_codes[row]) and absmax[row] == clean_absmax[row]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_rounds_once(dtype):
    codes = torch.arange(-127, 128, dtype=torch.int8).reshape(1, -1)
    absmax = torch.tensor([3.7])
    exact = codes.double() * (absmax / INT8_MAX).double()
    expected = exact.float().to(dtype)  # the float32 product, then the cast
    assert torch.equal(dequantize_rowwise(codes, absmax, dtype), expected)


# ---------------------------------------------------------------------------------------------------------------------
# Outlier columns


def test_outlier_columns_worked_by_hand():
    x = torch.tensor([[1.0, -8.0, 6.0, 5.99], [2.0, 0.0, 1.0, -5.99]])
    assert outlier_columns(x, 6.0).tolist() == [1, 2]  # 6.0 reaches the threshold, 5.99 does not
    assert outlier_columns(x, 9.0).tolist() == []
    assert outlier_columns(x, 1e-30).tolist() == [0, 1, 2, 3]
    assert outlier_columns(x.reshape(2, 1, 4), 6.0).tolist() == [1, 2]


def test_threshold_zero_means_no_decomposition():
    assert outlier_columns(torch.full((2, 3), 1e9), 0.0).shape == (0,)
    assert outlier_columns(torch.full((2, 3), 1e9), 0.0).dtype == torch.int64


@given(matrices, st.floats(1e-3, 2e4))
@property_test
def test_outlier_columns_equal_the_oracle(values, threshold):
    threshold = float(np.float32(threshold))
    expected = np.flatnonzero(oracle.is_outlier(values.astype(np.float64), threshold))
    assert outlier_columns(torch.from_numpy(values), threshold).tolist() == expected.tolist()


def test_threshold_is_compared_in_float32():
    x = torch.tensor([[6.0625, 6.09375]], dtype=torch.bfloat16)
    assert x.tolist() == [[6.0625, 6.09375]]  # neighbours in bf16, to which 6.07 would be rounded down
    assert outlier_columns(x, 6.07).tolist() == [1]


def test_a_nan_column_is_an_outlier_but_only_with_a_threshold():
    x = torch.tensor([[1.0, float("nan"), 7.0], [1.0, 9.0, float("inf")]])
    assert outlier_columns(x, 6.0).tolist() == [1, 2]
    assert outlier_columns(x, 0.0).tolist() == []


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_nothing_has_no_outliers(shape):
    assert outlier_columns(torch.empty(shape), 6.0).tolist() == []
