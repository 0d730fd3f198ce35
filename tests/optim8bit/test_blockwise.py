import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import optim8bit as oracle

from optim8bit import (
    dequantize_blockwise,
    dequantize_blockwise_reference,
    dynamic_map,
    quantize_blockwise,
    quantize_blockwise_reference,
)

finite_floats = st.floats(-(2.0**100), 2.0**100, width=32)
vectors = st.lists(finite_floats, max_size=40).map(lambda values: torch.tensor(values, dtype=torch.float32))
block_sizes = st.integers(1, 12)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def round_trip(x: torch.Tensor, *, signed: bool, block_size: int = 256) -> torch.Tensor:
    codes, absmax = quantize_blockwise(x, signed=signed, block_size=block_size)
    return dequantize_blockwise(codes, absmax, signed=signed, block_size=block_size)


def test_an_example_by_hand() -> None:
    x = torch.tensor([[4.0, -2.0, 0.0], [0.25, -8.0, 1.0]])
    codes, absmax = quantize_blockwise(x, signed=True, block_size=3)
    assert absmax.tolist() == [4.0, 8.0]
    # −2/4 lies in the uppermost decade, whose k-th of 64 values is 0.1 + 0.9(k + ½)/64: k = 28 gives 0.50078.
    # That decade begins at code 191, and −1 is the mirror image of the last but one.
    assert codes.tolist() == [[255, 127 - (191 - 127 + 28), 127], [127 + 32 + 7, 0, 191 + 1]]
    values = dequantize_blockwise(codes, absmax, signed=True, block_size=3)
    assert values[0].tolist() == pytest.approx([4.0, -4 * (0.1 + 0.9 * 28.5 / 64), 0.0])
    assert values[1, 1].item() == pytest.approx(-8 * 0.99296875)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(1,), (255,), (256,), (257,), (3, 700), (2, 5, 51)])
def test_fast_equals_reference(signed: bool, shape: tuple[int, ...]) -> None:
    x = normal(*shape) * 10 ** normal(*shape, seed=1)
    codes, absmax = quantize_blockwise(x, signed=signed)
    expected_codes, expected_absmax = quantize_blockwise_reference(x, signed=signed)
    assert torch.equal(codes, expected_codes) and torch.equal(absmax, expected_absmax)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values = dequantize_blockwise(codes, absmax, signed=signed, dtype=dtype)
        assert values.dtype == dtype
        expected = dequantize_blockwise_reference(codes, absmax, signed=signed, dtype=dtype)
        assert torch.equal(values, expected)


@pytest.mark.parametrize("signed", [True, False])
def test_reference_equals_the_float64_oracle(signed: bool, check_bound) -> None:
    x = normal(1000) if signed else normal(1000).square()
    values = oracle.dynamic_map(signed)
    codes, scales = oracle.quantize(x.numpy(), values, 256)
    ours, absmax = quantize_blockwise_reference(x, signed=signed)
    assert np.array_equal(absmax.numpy(), scales)
    assert np.array_equal(ours.numpy(), codes)  # no value of this sample is within float32 rounding of a boundary
    decoded = dequantize_blockwise_reference(ours, absmax, signed=signed)
    error = np.abs(decoded.numpy() - oracle.dequantize(codes, scales, values, 256)).max() / scales.max()
    # The map's own error is 4·2⁻²⁴, the product rounds once more.
    check_bound("8-bit dequantize: float32 vs oracle", error, 5 * 2**-24)


def test_errors_stay_below_those_that_peers_assert(check_bound) -> None:
    samples = [
        ("N(0, 1)", normal(1024, 1024), True, 0.011, 0.018),
        ("uniform, signed", torch.rand(1024, 1024, generator=torch.Generator().manual_seed(0)), True, 0.0036, 0.015),
        ("uniform, unsigned", torch.rand(1024, 1024, generator=torch.Generator().manual_seed(0)), False, 0.0023, 0.012),
    ]
    for name, x, signed, absolute, relative in samples:
        error = (round_trip(x, signed=signed) - x).abs()
        check_bound(f"8-bit quantize {name}: mean absolute error", error.mean(), absolute)
        check_bound(f"8-bit quantize {name}: mean relative error", (error / (x.abs() + 1e-8)).mean(), relative)


@pytest.mark.parametrize("signed", [True, False])
def test_no_value_moves_further_than_half_the_widest_gap(signed: bool, check_bound) -> None:
    x = normal(200, 256) if signed else normal(200, 256).abs()
    widest = dynamic_map(signed).diff().max() / 2
    error = (round_trip(x, signed=signed) - x).abs() / x.abs().amax(1, keepdim=True)
    # From −0.99297 to the absent −1 it is as far as half the widest gap. Normalising and scaling back round once each.
    check_bound("8-bit quantize: error vs half a gap", error.max(), max(widest, 1 - 0.99296875) + 2 * 2**-24)


@given(vectors, block_sizes, st.booleans())
@settings(max_examples=150, deadline=None)
def test_fast_equals_reference_on_anything(x: torch.Tensor, block_size: int, signed: bool) -> None:
    codes, absmax = quantize_blockwise(x, signed=signed, block_size=block_size)
    expected_codes, expected_absmax = quantize_blockwise_reference(x, signed=signed, block_size=block_size)
    assert torch.equal(codes, expected_codes) and torch.equal(absmax, expected_absmax)


@given(vectors, block_sizes, st.integers(-20, 20))
@settings(max_examples=100, deadline=None)
def test_powers_of_two_scale_through(x: torch.Tensor, block_size: int, exponent: int) -> None:
    x = torch.where(x.abs() < 1e-30, 0.0, x)  # stay clear of subnormal numbers, which have fewer bits
    codes, absmax = quantize_blockwise(x, signed=True, block_size=block_size)
    scaled_codes, scaled_absmax = quantize_blockwise(x * 2.0**exponent, signed=True, block_size=block_size)
    assert torch.equal(scaled_codes, codes)
    assert torch.equal(scaled_absmax, absmax * 2.0**exponent)


@given(st.lists(finite_floats, min_size=1, max_size=40), st.booleans())
@settings(max_examples=100, deadline=None)
def test_quantizing_is_monotone_within_a_block(values: list[float], signed: bool) -> None:
    codes, _ = quantize_blockwise(torch.tensor(sorted(values)), signed=signed, block_size=64)
    assert (codes.int().diff() >= 0).all()


@given(st.lists(finite_floats, min_size=9, max_size=9), st.lists(finite_floats, min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_blocks_are_independent(values: list[float], others: list[float]) -> None:
    x = torch.tensor(values)
    y = torch.cat([x[:3], torch.tensor(others), x[6:]])
    before, after = (quantize_blockwise(t, signed=True, block_size=3) for t in (x, y))
    for block in (0, 2):
        assert torch.equal(before[0][3 * block :][:3], after[0][3 * block :][:3])
        assert before[1][block] == after[1][block]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("signed", [True, False])
def test_a_non_finite_value_is_zero_to_its_neighbours(bad: float, signed: bool) -> None:
    clean = normal(700).abs()
    clean[300] = 0.0
    dirty = clean.clone()
    dirty[300] = bad
    for quantize in (quantize_blockwise, quantize_blockwise_reference):
        codes, absmax = quantize(dirty, signed=signed)
        expected_codes, expected_absmax = quantize(clean, signed=signed)
        assert torch.equal(codes, expected_codes) and torch.equal(absmax, expected_absmax)


def test_zero_blocks_come_back_as_zeros() -> None:
    x = torch.zeros(600)
    x[400] = 3.0
    codes, absmax = quantize_blockwise(x, signed=True)
    assert absmax.tolist() == [0.0, 3.0, 0.0]
    assert torch.equal(dequantize_blockwise(codes, absmax, signed=True), x)
    assert not round_trip(torch.full((300,), float("nan")), signed=True).any()


def test_a_negative_extreme_shrinks_so_a_second_round_trip_differs() -> None:
    x = torch.tensor([-10.0, 9.9, 5.0, 1.0])
    once = round_trip(x, signed=True)
    twice = round_trip(once, signed=True)
    assert once[0].item() == pytest.approx(-9.9296875)
    assert not torch.equal(once, twice)
    positive = round_trip(-x, signed=True)  # an extreme of 1 has a code: values on the map stay on it
    assert torch.equal(round_trip(positive, signed=True), positive)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    x = normal(500).to(dtype)
    codes, absmax = quantize_blockwise(x, signed=True)
    expected = quantize_blockwise(x.float(), signed=True)
    assert absmax.dtype == torch.float32
    assert torch.equal(codes, expected[0]) and torch.equal(absmax, expected[1])


def test_strides_do_not_matter() -> None:
    x = normal(60, 40)
    codes, absmax = quantize_blockwise(x.t(), signed=True)
    expected = quantize_blockwise(x.t().contiguous(), signed=True)
    assert torch.equal(codes, expected[0]) and torch.equal(absmax, expected[1])
    assert torch.equal(
        dequantize_blockwise(codes.t(), quantize_blockwise(x, signed=True)[1], signed=True),
        dequantize_blockwise(codes.t().contiguous(), quantize_blockwise(x, signed=True)[1], signed=True),
    )


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 256)])
def test_empty_tensors(shape: tuple[int, ...]) -> None:
    for quantize in (quantize_blockwise, quantize_blockwise_reference):
        codes, absmax = quantize(torch.empty(shape), signed=True)
        assert codes.shape == shape and codes.dtype == torch.uint8
        assert absmax.shape == (0,) and absmax.dtype == torch.float32
        assert dequantize_blockwise(codes, absmax, signed=True).shape == shape


def test_a_scalar_is_one_block() -> None:
    codes, absmax = quantize_blockwise(torch.tensor(-3.0), signed=True)
    assert codes.shape == () and absmax.tolist() == [3.0]
    assert dequantize_blockwise(codes, absmax, signed=True).item() == pytest.approx(-3 * 0.99296875)


def test_negative_values_under_the_unsigned_map_are_zero() -> None:
    codes, absmax = quantize_blockwise(torch.tensor([-4.0, -0.0, 2.0]), signed=False)
    assert absmax.tolist() == [4.0]
    assert dequantize_blockwise(codes, absmax, signed=False).tolist() == pytest.approx([0.0, 0.0, 2.0], rel=0.01)


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"torch\.int64.*floating"):
        quantize_blockwise(torch.arange(3), signed=True)
    with pytest.raises(ValueError, match=r"block_size is 0.*256"):
        quantize_blockwise(torch.ones(3), signed=True, block_size=0)
    with pytest.raises(ValueError, match=r"torch\.int32.*uint8"):
        dequantize_blockwise(torch.ones(3, dtype=torch.int32), torch.ones(1), signed=True)
    codes, absmax = quantize_blockwise(torch.ones(300), signed=True)
    with pytest.raises(ValueError, match=r"300 codes in blocks of 128.*\(2,\).*\(3,\)"):
        dequantize_blockwise(codes, absmax, signed=True, block_size=128)
    with pytest.raises(ValueError, match="blocks of 0"):
        dequantize_blockwise(codes, absmax, signed=True, block_size=0)
