"""LLM.int8()'s product: hand numbers, reference against the NumPy oracle, fast against reference, the error's bound,
what the decomposition is for, and every odd input."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import int8 as oracle
from torch import Tensor

from int8 import (
    int8_linear_trainable,
    int8_linear_trainable_reference,
    int8_matmul,
    int8_matmul_reference,
    quantize_rowwise,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 1), (1, 64, 8), (2, 3, 2), (5, 33, 7), (16, 100, 24), (17, 64, 64), (48, 257, 130)]

property_test = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def unit(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def draw(rows, inner, columns, *, dtype=torch.float32, outliers=0, seed=0) -> tuple[Tensor, Tensor]:
    """Normal activations, `outliers` of their columns twenty times as large, and a normal weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inner, generator=generator)
    x[:, torch.randperm(inner, generator=generator)[:outliers]] *= 20
    return x.to(dtype), torch.randn(columns, inner, generator=generator) / inner**0.5


def as_float64(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in tensors]


# ---------------------------------------------------------------------------------------------------------------------
# The formula


@pytest.mark.parametrize("multiply", [int8_matmul, int8_matmul_reference])
def test_numbers_worked_by_hand(multiply):
    """X = [[1, −2, 20], [½, 1, 4]], threshold 6: column 3 is the outlier, R the rest, c_R = (2, 1).

    R_i8   = [[63.5 → 64, −127], [63.5 → 64, 127]]
    Ŵ columns (1, ½, −1) and (¼, 2, 4), stored as rows: c_W = (1, 4), codes (127, 64, −127) and (8, 64, 127)
    V_i32  = [[64·127 − 127·64, 64·8 − 127·64], [64·127 + 127·64, 64·8 + 127·64]] = [[0, −7616], [16256, 8640]]
    O·W_O  = [[20·−1, 20·4], [4·−1, 4·4]]
    """
    x = torch.tensor([[1.0, -2.0, 20.0], [0.5, 1.0, 4.0]])
    codes, absmax = quantize_rowwise(torch.tensor([[1.0, 0.5, -1.0], [0.25, 2.0, 4.0]]))
    assert codes.tolist() == [[127, 64, -127], [8, 64, 127]] and absmax.tolist() == [1.0, 4.0]
    expected = torch.tensor(
        [
            [0 * 2 * 1 / 127**2 - 20, -7616 * 2 * 4 / 127**2 + 80],
            [16256 * 1 * 1 / 127**2 - 4, 8640 * 1 * 4 / 127**2 + 16],
        ]
    )
    torch.testing.assert_close(multiply(x, codes, absmax, 6.0), expected, rtol=4 * 2**-24, atol=0)


@pytest.mark.parametrize("multiply", [int8_linear_trainable, int8_linear_trainable_reference])
def test_numbers_worked_by_hand_trainable(multiply):
    """The same X and W. Now c_W = (1, 2) leaves out the outlier's row: codes (127, 64), (16, 127), and W_O is exact.

    V_i32 = [[64·127 − 127·64, 64·16 − 127·127], [64·127 + 127·64, 64·16 + 127·127]] = [[0, −15105], [16256, 17153]]
    """
    x = torch.tensor([[1.0, -2.0, 20.0], [0.5, 1.0, 4.0]])
    weight = torch.tensor([[1.0, 0.5, -1.0], [0.25, 2.0, 4.0]])
    expected = torch.tensor(
        [
            [0 * 2 * 1 / 127**2 - 20, -15105 * 2 * 2 / 127**2 + 80],
            [16256 * 1 * 1 / 127**2 - 4, 17153 * 1 * 2 / 127**2 + 16],
        ]
    )
    torch.testing.assert_close(multiply(x, weight, 6.0), expected, rtol=4 * 2**-24, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outliers", [0, 1, 6])
def test_frozen_reference_equals_the_oracle(dtype, outliers, check_bound):
    x, weight = draw(12, 80, 20, dtype=dtype, outliers=outliers)
    codes, absmax = quantize_rowwise(weight)
    x64, codes64, absmax64 = as_float64(x, codes.T, absmax)
    regular = x64[:, ~oracle.is_outlier(x64, 6.0)]
    assert dtype != torch.float32 or oracle.distance_from_ties(regular) > 1e-4, "a tie: take another seed"
    expected = oracle.llm_int8_frozen(x64, codes64, absmax64, 6.0)
    assert expected.n_outliers == outliers
    error = np.abs(int8_matmul_reference(x, codes, absmax, 6.0).double().numpy() - expected.total)
    name = f"int8_matmul: reference vs float64 oracle, {str(dtype)[6:]}"
    check_bound(name, (error / expected.float32_rounding(unit(dtype))).max(), 1.0)


@pytest.mark.parametrize("outliers", [0, 1, 6])
def test_trainable_reference_equals_the_oracle(outliers, check_bound):
    x, weight = draw(12, 80, 20, outliers=outliers)
    x64, weight64 = as_float64(x, weight.T)
    outlier = oracle.is_outlier(x64, 6.0)
    assert min(oracle.distance_from_ties(x64[:, ~outlier]), oracle.distance_from_ties(weight64[~outlier].T)) > 1e-4
    expected = oracle.llm_int8(x64, weight64, 6.0)
    error = np.abs(int8_linear_trainable_reference(x, weight, 6.0).double().numpy() - expected.total)
    check_bound(
        "int8_linear_trainable: reference vs float64 oracle",
        (error / expected.float32_rounding(unit(torch.float32))).max(),
        1.0,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Fast against reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0.0, 6.0, 1e-30])
def test_fast_equals_reference(dtype, shape, threshold, check_bound):
    """The integers agree exactly (test_int_mm); what follows is the same arithmetic in another order, in float32."""
    x, weight = draw(*shape, dtype=dtype, outliers=min(shape[1], 3))
    codes, absmax = quantize_rowwise(weight)
    fast, reference = (f(x, codes, absmax, threshold) for f in (int8_matmul, int8_matmul_reference))
    assert fast.dtype == dtype and fast.shape == reference.shape
    rounding = oracle.llm_int8_frozen(*as_float64(x, codes.T, absmax), threshold).float32_rounding(unit(dtype))
    error = np.abs(fast.double().numpy() - reference.double().numpy())
    check_bound(f"int8_matmul: fast vs reference, {str(dtype)[6:]}", (error / (2 * rounding)).max(), 1.0)

    weight = weight.to(dtype)
    fast, reference = (f(x, weight, threshold) for f in (int8_linear_trainable, int8_linear_trainable_reference))
    rounding = oracle.llm_int8(*as_float64(x, weight.T), threshold).float32_rounding(unit(dtype))
    error = np.abs(fast.double().numpy() - reference.double().numpy())
    check_bound(f"int8_linear_trainable: fast vs reference, {str(dtype)[6:]}", (error / (2 * rounding)).max(), 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_int8_can_represent_is_multiplied_exactly(dtype):
    """Integers within ±127 (times a power of two) with the extreme in every row have themselves as codes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (9, 20), generator=generator).float()
    weight = torch.randint(-127, 128, (6, 20), generator=generator).float()
    x[:, 3], weight[:, 5] = 127, -127
    x, weight = x / 64, weight / 1024
    codes, absmax = quantize_rowwise(weight)
    exact = (x.double() @ weight.double().T).to(dtype)
    assert torch.equal(int8_matmul(x.to(dtype), codes, absmax, 0.0), exact)
    assert torch.equal(int8_linear_trainable(x.to(dtype), weight.to(dtype), 0.0), exact)


# ---------------------------------------------------------------------------------------------------------------------
# The error, and what the decomposition does to it


def entries(largest: float) -> st.SearchStrategy[float]:
    return st.floats(-largest, largest, width=32, allow_subnormal=False).map(
        lambda value: value if abs(value) > 1e-9 else 0.0
    )


@st.composite
def operands(draw) -> tuple[Tensor, Tensor]:
    rows, inner, columns = (draw(st.integers(1, n)) for n in (4, 9, 4))
    x = draw(arrays(np.float32, (rows, inner), elements=entries(1024)))
    weight = draw(arrays(np.float32, (columns, inner), elements=entries(16)))
    return torch.from_numpy(x), torch.from_numpy(weight)


@given(operands(), st.sampled_from([0.0, 1e-30, 1.0, 6.0, 100.0]))
@property_test
def test_error_stays_within_the_analytic_bound(check_bound, pair, threshold):
    x, weight = pair
    x64, weight64 = as_float64(x, weight.T)
    codes, absmax = quantize_rowwise(weight)
    for frozen, output, product in [
        (
            True,
            int8_matmul(x, codes, absmax, threshold),
            oracle.llm_int8_frozen(x64, *as_float64(codes.T, absmax), threshold),
        ),
        (False, int8_linear_trainable(x, weight, threshold), oracle.llm_int8(x64, weight64, threshold)),
    ]:
        error = np.abs(output.double().numpy() - x64 @ weight64)
        bound = oracle.error_bound(x64, weight64, threshold, frozen=frozen)
        bound = bound + 1.01 * product.float32_rounding(unit(torch.float32))
        check_bound(
            f"LLM.int8() error vs analytic bound, {'frozen' if frozen else 'trainable'}", (error / bound).max(), 1.0
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_of_normal_operands_within_the_analytic_bound(dtype, check_bound):
    x, weight = draw(64, 512, 96, dtype=dtype, outliers=6)
    x64, weight64 = as_float64(x, weight.T)
    output = int8_matmul(x, *quantize_rowwise(weight), 6.0).double().numpy()
    exact = x64 @ weight64
    bound = oracle.error_bound(x64, weight64, 6.0, frozen=True) + 1.01 * unit(dtype) * np.abs(exact)
    check_bound(
        f"LLM.int8() 512 features, error vs analytic bound, {str(dtype)[6:]}", (np.abs(output - exact) / bound).max(), 1
    )


def test_threshold_towards_zero_is_the_product_with_the_decoded_weight(check_bound):
    x, weight = draw(10, 96, 12)
    codes, absmax = quantize_rowwise(weight)
    x64, decoded = as_float64(x, codes.T * absmax / 127)
    error = np.abs(int8_matmul(x, codes, absmax, 1e-30).double().numpy() - x64 @ decoded)
    # 96 additions and three roundings per product (scale, code times scale, product), in the oracle's weight one more.
    check_bound("threshold → 0⁺ vs float product", (error / (np.abs(x64) @ np.abs(decoded))).max(), (96 + 4) * 2**-24)

    x64, weight64 = as_float64(x, weight.T)
    error = np.abs(int8_linear_trainable(x, weight, 1e-30).double().numpy() - x64 @ weight64)
    check_bound("threshold → 0⁺, trainable", (error / (np.abs(x64) @ np.abs(weight64))).max(), (96 + 1) * 2**-24)


@pytest.mark.parametrize("threshold", [1e9, float("inf")])
def test_threshold_zero_means_no_decomposition(threshold):
    x, weight = draw(8, 40, 6, outliers=4)
    quantized = quantize_rowwise(weight)
    without = int8_matmul(x, *quantized, 0.0)
    assert torch.equal(without, int8_matmul(x, *quantized, threshold))
    assert not torch.equal(without, int8_matmul(x, *quantized, 6.0))


def test_the_papers_lesson(check_bound):
    """Six features twenty times the others ruin absmax quantization, row-wise as much as whole; the decomposition
    restores the error of a matrix without outliers. The order of the paper's table 1."""
    x, weight = draw(256, 1024, 256, outliers=6)
    x64, weight64 = as_float64(x, weight.T)
    exact = x64 @ weight64

    def relative_error(output: np.ndarray, expected: np.ndarray = exact) -> float:
        return float(np.linalg.norm(output - expected) / np.linalg.norm(expected))

    def whole(matrix: np.ndarray) -> np.ndarray:
        """absmax quantization with a single scale."""
        step = np.abs(matrix).max() / 127
        return np.rint(matrix / step) * step

    quantized = quantize_rowwise(weight)
    tensor_wise = relative_error(whole(x64) @ whole(weight64))
    row_wise = relative_error(int8_matmul(x, *quantized, 0.0).double().numpy())
    llm_int8 = relative_error(int8_matmul(x, *quantized, 6.0).double().numpy())
    assert llm_int8 < row_wise < tensor_wise

    plain, _ = draw(256, 1024, 256, outliers=0)
    no_outliers = relative_error(int8_matmul(plain, *quantized, 0.0).double().numpy(), as_float64(plain)[0] @ weight64)
    # Relative to the exact output, whose larger part then comes from the outliers (6·400 of 6·400 + 1018 in variance).
    check_bound("six outlier columns × 20: error with / without decomposition", llm_int8 / row_wise, 1 / 3)
    check_bound(
        "six outlier columns × 20: error with decomposition / error without outliers", llm_int8 / no_outliers, 1.0
    )


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_peers_tolerance_on_small_matrices(threshold, dtype, check_bound):
    """bitsandbytes' own two demands on normal activations, a column of sixes, and a Xavier-uniform weight."""
    outside, far_outside = 0.0, 0.0
    for seed, (rows, inner, columns) in enumerate([(64, 64, 64), (96, 32, 80), (33, 96, 17), (80, 80, 96)]):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, inner, generator=generator)
        if threshold:
            x[:, 11] = 6.0
        weight = torch.nn.init.xavier_uniform_(torch.empty(columns, inner), generator=generator).to(dtype)
        x = x.to(dtype)
        expected = x.float() @ weight.float().T
        for output in (
            int8_linear_trainable(x, weight, threshold).float(),
            int8_matmul(x, *quantize_rowwise(weight), threshold).float(),
        ):
            outside = max(outside, 1 - torch.isclose(output, expected, atol=0.01, rtol=0.1).double().mean().item())
            close = torch.isclose(output, expected, atol=0.035, rtol=0.2)
            far_outside = max(far_outside, 1 - close.double().mean().item())
    check_bound("int8 product: share outside atol .01, rtol .1", outside, 0.0175)
    check_bound("int8 product: share outside atol .035, rtol .2", far_outside, 0.001)


# ---------------------------------------------------------------------------------------------------------------------
# Invariants


@given(operands(), st.integers(-12, 12), st.sampled_from([0.0, 6.0]))
@property_test
def test_powers_of_two_scale_through(pair, exponent, threshold):
    x, weight = pair
    quantized, factor = quantize_rowwise(weight), 2.0**exponent
    expected = int8_matmul(x, *quantized, threshold) * factor
    assert torch.equal(int8_matmul(x * factor, *quantized, threshold * factor), expected)


@given(operands(), st.sampled_from([0.0, 6.0]))
@property_test
def test_odd_in_the_activations(pair, threshold):
    x, weight = pair
    quantized = quantize_rowwise(weight)
    assert torch.equal(int8_matmul(-x, *quantized, threshold), -int8_matmul(x, *quantized, threshold))


@given(operands())
@property_test
def test_rows_are_independent_without_decomposition(pair):
    x, weight = pair
    quantized = quantize_rowwise(weight)
    alone = torch.cat([int8_matmul(row[None], *quantized, 0.0) for row in x])
    assert torch.equal(int8_matmul(x, *quantized, 0.0), alone)


def test_with_decomposition_rows_share_their_outlier_columns():
    """An outlier in one row moves its column to floating point for the others too: they change, within the bound."""
    x, weight = draw(4, 64, 16)
    quantized = quantize_rowwise(weight)
    before = int8_matmul(x, *quantized, 6.0)
    x[0, 5] = 50.0
    after = int8_matmul(x, *quantized, 6.0)
    assert not torch.equal(before[1:], after[1:])
    exact = as_float64(x)[0] @ as_float64(weight.T)[0]
    bound = oracle.error_bound(*as_float64(x, weight.T), 6.0, frozen=True)
    assert (np.abs(after.double().numpy() - exact) <= bound * (1 + 1e-3)).all()


@given(operands(), st.randoms(use_true_random=False))
@property_test
def test_permuting_rows_permutes_the_result(pair, random):
    x, weight = pair
    order = list(range(len(x)))
    random.shuffle(order)
    quantized = quantize_rowwise(weight)
    assert torch.equal(int8_matmul(x[order], *quantized, 0.0), int8_matmul(x, *quantized, 0.0)[order])


# ---------------------------------------------------------------------------------------------------------------------
# Odd inputs


def test_zero_rows_and_a_zero_matrix():
    x, weight = draw(5, 24, 6, outliers=1)
    quantized = quantize_rowwise(weight)
    x[2] = 0
    output = int8_matmul(x, *quantized, 6.0)
    assert output.isfinite().all() and not output[2].any()
    assert not int8_matmul(torch.zeros(3, 24), *quantized, 6.0).any()
    assert not int8_matmul(x, *quantize_rowwise(torch.zeros(6, 24)), 6.0).any()


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3), (), (1,), (2, 3), (2, 1, 3)])
def test_any_leading_dimensions(leading, threshold):
    _, weight = draw(1, 24, 6)
    quantized = quantize_rowwise(weight)
    x = torch.randn(*leading, 24, generator=torch.Generator().manual_seed(5)) * 3
    output = int8_matmul(x, *quantized, threshold)
    assert output.shape == (*leading, 6)
    assert torch.equal(output.reshape(-1, 6), int8_matmul(x.reshape(-1, 24), *quantized, threshold))
    assert int8_matmul_reference(x, *quantized, threshold).shape == (*leading, 6)
    assert int8_linear_trainable(x, weight, threshold).shape == (*leading, 6)


def test_non_contiguous_operands():
    x, weight = draw(12, 40, 10, outliers=2)
    codes, absmax = quantize_rowwise(weight)
    expected = int8_matmul(x, codes, absmax, 6.0)
    wide = torch.stack([x, torch.zeros_like(x)], dim=2).reshape(12, 80)[:, ::2]
    assert not wide.is_contiguous() and not x.T.contiguous().T.is_contiguous()
    assert torch.equal(int8_matmul(wide, codes, absmax, 6.0), expected)
    assert torch.equal(int8_matmul(x.T.contiguous().T, codes.T.contiguous().T, absmax, 6.0), expected)
    three = x.reshape(3, 4, 40).transpose(0, 1)
    assert torch.equal(int8_matmul(three, codes, absmax, 6.0), expected.reshape(3, 4, 10).transpose(0, 1))


def test_all_columns_outliers():
    x, weight = draw(6, 32, 8)
    x[0] = 10.0
    quantized = quantize_rowwise(weight)
    for threshold in (6.0, 1e-30):
        torch.testing.assert_close(
            int8_matmul(x, *quantized, threshold), int8_matmul_reference(x, *quantized, threshold), rtol=1e-5, atol=1e-5
        )


def test_no_weight_rows():
    assert int8_matmul(torch.ones(3, 4), *quantize_rowwise(torch.ones(0, 4)), 6.0).shape == (3, 0)


@pytest.mark.parametrize("multiply", [int8_matmul, int8_matmul_reference])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_non_finite_entry_stays_visible_and_stays_in_its_row(multiply, threshold, bad, dtype):
    """A run watches for non-finite values: none may be swallowed by a code, none may spread to other tokens."""
    x, weight = draw(5, 40, 12, dtype=dtype, outliers=2)
    quantized = quantize_rowwise(weight)
    x[3, 7] = bad
    output = multiply(x, *quantized, threshold)
    assert not output[3].isfinite().any()
    others = output[[0, 1, 2, 4]]
    assert others.isfinite().all()
    exact = x[[0, 1, 2, 4]].double() @ weight.double().T
    bound = oracle.error_bound(*as_float64(x[[0, 1, 2, 4]], weight.T), 0.0, frozen=True)
    assert (np.abs((others.double() - exact).numpy()) <= bound + 2 * unit(dtype) * exact.abs().numpy()).all()


def test_float16_overflow_is_infinite_as_in_any_float16_product():
    x, weight = torch.full((1, 8), 6e4, dtype=torch.float16), torch.ones(2, 8)
    assert int8_matmul(x, *quantize_rowwise(weight), 0.0).isinf().all()


def test_inputs_are_left_alone():
    x, weight = draw(6, 32, 8, outliers=2)
    codes, absmax = quantize_rowwise(weight)
    before = [tensor.clone() for tensor in (x, codes, absmax, weight)]
    int8_matmul(x, codes, absmax, 6.0)
    int8_linear_trainable(x, weight, 6.0)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, codes, absmax, weight), strict=True))


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_meta_device_gives_shapes(threshold):
    codes = torch.empty(6, 24, dtype=torch.int8, device="meta")
    x = torch.empty(2, 3, 24, dtype=torch.bfloat16, device="meta", requires_grad=True)
    output = int8_matmul(x, codes, torch.empty(6, device="meta"), threshold)
    assert output.is_meta and output.shape == (2, 3, 6) and output.dtype == torch.bfloat16
    output.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


# ---------------------------------------------------------------------------------------------------------------------
# Autocast, and the boundary


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype_as_a_linear_does(dtype):
    x, weight = draw(6, 40, 8, outliers=2)
    quantized = quantize_rowwise(weight)
    with torch.autocast("cpu", dtype=dtype):
        output = int8_matmul(x, *quantized, 6.0)
        trained = int8_linear_trainable(x, weight, 6.0)
        assert torch.nn.functional.linear(x, weight).dtype == dtype
    assert output.dtype == dtype
    # Not only the same dtype: the same bits, so float32 parts inside were not cast down on the way.
    assert torch.equal(output, int8_matmul(x.to(dtype), *quantized, 6.0))
    assert torch.equal(trained, int8_linear_trainable(x.to(dtype), weight.to(dtype), 6.0))
    with torch.autocast("cpu", dtype=dtype, enabled=False):
        assert int8_matmul(x, *quantized, 6.0).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 4, dtype=torch.float64)}, "activations must be .* got torch.float64: cast"),
        ({"x": torch.ones(2, 4, dtype=torch.int64)}, "activations must be .* got torch.int64: cast"),
        ({"x": torch.ones(2, 5)}, r"\(2, 5\) and \(3, 4\) do not multiply"),
        ({"x": torch.tensor(1.0)}, r"\(\) and \(3, 4\) do not multiply"),
        ({"weight_codes": torch.ones(3, 4)}, "weight_codes must be int8 .* got torch.float32"),
        (
            {"weight_absmax": torch.ones(3, dtype=torch.float16)},
            "weight_absmax float32, got .*torch.float16.*do not cast",
        ),
        ({"weight_absmax": torch.ones(4)}, r"one scale per row of weight_codes \(3, 4\), got shape \(4,\)"),
        ({"threshold": -1.0}, "threshold must be 0 .* got -1.0"),
        ({"threshold": float("nan")}, "threshold must be 0 .* got nan"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    fitting = {
        "x": torch.ones(2, 4),
        "weight_codes": torch.ones(3, 4, dtype=torch.int8),
        "weight_absmax": torch.ones(3),
        "threshold": 6.0,
    }
    int8_matmul(**fitting)
    with pytest.raises(ValueError, match=message):
        int8_matmul(**(fitting | change))


def test_trainable_weight_of_another_dtype_is_named():
    with pytest.raises(ValueError, match=r"weight is torch.float32 but x is torch.bfloat16: cast"):
        int8_linear_trainable(torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(3, 4), 6.0)
