"""One row times a matrix: against the formula, against float64, and where C does not apply."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import lora as lora_oracle
from oracles import native as oracle
from torch import Tensor

from int8 import int8_matmul, quantize_rowwise
from native import RowMatrix, c_backend, is_single_row, row_product, row_product_reference, rows

Check = Callable[[str, float, float], None]

needs_compiler = pytest.mark.skipif(c_backend() != "C", reason="install a C compiler")

# Half the distance between neighbouring numbers, relative: the cost of one rounding.
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
FLOAT32 = UNIT[torch.float32]
DTYPES = list(UNIT)
# (N, K): one of everything, odd numbers, and K on both sides of multiples of 64, the bytes of a vector.
SIZES = [(1, 1), (3, 1), (1, 63), (5, 64), (17, 65), (8, 127), (2, 500), (33, 1024), (7, 4097)]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def int8_matrix(n: int, k: int, seed: int = 0) -> RowMatrix:
    return RowMatrix(*quantize_rowwise(randn(n, k, seed=seed)))


def arrays(x: Tensor, matrix: RowMatrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return x.double().numpy(), matrix.weight.numpy(), matrix.absmax.double().numpy()


def product(x: Tensor, matrix: RowMatrix) -> Tensor:
    y = row_product(x, matrix)
    assert y is not None and y.dtype == x.dtype and y.shape == matrix.weight.shape[:1]
    return y


def worst(error: np.ndarray, bound: np.ndarray) -> float:
    """Of the errors as shares of their bounds; none where both are 0."""
    return float(np.divide(error, bound, out=np.where(error > 0, np.inf, 0.0), where=bound > 0).max())


def check_int8(check_bound: Check, name: str, x: Tensor, matrix: RowMatrix) -> None:
    """Against the formula and against the float64 product of the same codes, each within its own bound."""
    y = product(x, matrix).double().numpy()
    x64, codes, absmax = arrays(x, matrix)
    unit = UNIT[x.dtype]
    from_formula = np.abs(y - oracle.int8_product(x64, codes, absmax))
    from_product = np.abs(y - oracle.decoded(codes, absmax) @ x64)
    check_bound(f"{name}, formula", worst(from_formula, oracle.formula_bound(x64, codes, absmax, unit)), 1)
    check_bound(f"{name}, float64", worst(from_product, oracle.product_bound(x64, codes, absmax, unit)), 1)


# ---------------------------------------------------------------------------------------------------------------------
# int8


def test_fixed_point_by_hand() -> None:
    # a = 2, so q = 16256·x; the weight is 2/127·(127, 0, −127) = (2, 0, −2): 2·1 − 2·¼
    matrix = RowMatrix(torch.tensor([[127, 0, -127]], dtype=torch.int8), torch.tensor([2.0]))
    x = torch.tensor([1.0, -2.0, 0.25])
    assert oracle.fixed_point(x.double().numpy())[0].tolist() == [16256, -32512, 4064]
    assert rows.fixed_point_reference(x)[0].tolist() == [16256, -32512, 4064]
    assert oracle.int8_product(*arrays(x, matrix)) == pytest.approx([1.5], rel=1e-15)
    assert row_product_reference(x, matrix).tolist() == [1.5]
    assert row_product(x, matrix) in (None, torch.tensor([1.5]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_reference_int8_product(dtype: torch.dtype, n: int, k: int, check_bound: Check) -> None:
    x, matrix = randn(k, seed=1).to(dtype), int8_matrix(n, k)
    x64, codes, absmax = arrays(x, matrix)
    error = np.abs(row_product_reference(x, matrix).double().numpy() - oracle.int8_product(x64, codes, absmax))
    bound = oracle.formula_bound(x64, codes, absmax, UNIT[dtype])
    check_bound(f"row product: int8 reference vs oracle, {dtype}", worst(error, bound), 1)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_int8_product(dtype: torch.dtype, n: int, k: int, check_bound: Check) -> None:
    check_int8(check_bound, f"row product: int8, {dtype}", randn(k, seed=1).to(dtype), int8_matrix(n, k))


@needs_compiler
@pytest.mark.parametrize("k", [64, 1000, rows.MAX_INNER])
@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_do_not_overflow(k: int, sign: int, check_bound: Check) -> None:
    """All codes ±127 and all x ±a, at the longest K that int32 has room for; the low bytes at their end, −128, too."""
    codes = torch.full((4, k), 127, dtype=torch.int8)
    codes[1], codes[2, ::2] = -127, -127
    matrix = RowMatrix(codes, torch.tensor([1.0, 3.0, 0.5, 1e-3]))
    check_int8(check_bound, "row product: int8, extremes", sign * torch.full((k,), 3.0), matrix)
    lowest = torch.full((k,), (127 * 256 - 128) / (127 * 256))  # q = 32384 = 127·256 − 128
    lowest[0] = 1
    check_int8(check_bound, "row product: int8, extremes", sign * lowest, matrix)


@needs_compiler
def test_too_long_a_row_is_left_to_others() -> None:
    codes = torch.zeros(1, rows.MAX_INNER + 1, dtype=torch.int8)
    assert row_product(torch.ones(codes.shape[1]), RowMatrix(codes, torch.ones(1))) is None


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_row_gives_zeros(dtype: torch.dtype) -> None:
    assert torch.equal(product(torch.zeros(65, dtype=dtype), int8_matrix(7, 65)), torch.zeros(7, dtype=dtype))


@needs_compiler
@pytest.mark.parametrize("largest", [1e-45, 1e-38, 9.5e-35, 9.6e-35, 1e-34, 1e-30, 1e30])
def test_tiny_and_huge_rows(largest: float, check_bound: Check) -> None:
    x = randn(64, seed=1)
    check_int8(check_bound, "row product: int8, tiny and huge x", x / x.abs().max() * largest, int8_matrix(9, 64))


@needs_compiler
def test_sums_beyond_the_largest_float_are_infinite() -> None:
    matrix = RowMatrix(torch.full((1, 64), 127, dtype=torch.int8), torch.tensor([1.0]))
    assert product(torch.full((64,), 3e38), matrix).isposinf()


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 64])
def test_what_is_not_finite_spoils_the_whole_row(dtype: torch.dtype, bad: float, place: int) -> None:
    x = randn(65, seed=1).to(dtype)
    x[place] = bad
    assert product(x, int8_matrix(7, 65)).isnan().all()


@needs_compiler
def test_outlier_columns(check_bound: Check) -> None:
    """Six columns twenty times as large: the steps grow with a, and still are finer than those that LLM.int8() has for
    the other columns."""
    matrix, x = int8_matrix(256, 2048), randn(2048, seed=1)
    with_outliers = x.clone()
    with_outliers[100:700:100] = 20 * torch.tensor([3.0, -2.5, 2.0, 3.0, -1.5, 2.0])
    rms = []
    for row in (x, with_outliers):
        check_int8(check_bound, "row product: int8, 6 outlier columns", row, matrix)
        x64, codes, absmax = arrays(row, matrix)
        exact = oracle.decoded(codes, absmax) @ x64
        error = product(row, matrix).double().numpy() - exact
        paper = int8_matmul(row[None], matrix.weight, matrix.absmax, threshold=6.0)[0].double().numpy() - exact
        # Rounding errors spread evenly over a step have an rms of its √12-th part, and K of them meet the weights. The
        # same K = 2048 errors serve all outputs, so that chance leaves a few percent.
        step = np.abs(x64).max() / oracle.LEVELS
        expected = step / np.sqrt(12) * np.sqrt((oracle.decoded(codes, absmax) ** 2).sum(1).mean())
        rms.append(np.sqrt((error**2).mean()))
        check_bound("row product: int8, rms error, of the expected", rms[-1] / expected, 1.15)
        # The regular columns' absmax is 3.6 here: LLM.int8()'s steps are 256·3.6/60 = 15 times as long.
        check_bound("row product: worst error, of LLM.int8()'s", np.abs(error).max() / np.abs(paper).max(), 0.1)
    growth = (with_outliers.abs().max() / x.abs().max()).item()
    check_bound("row product: rms error with outliers, of without", rms[1] / rms[0], 1.3 * growth)


@needs_compiler
def test_outlier_columns_in_bfloat16(check_bound: Check) -> None:
    """Rounding the result to bfloat16 costs more than the fixed point does."""
    matrix, x = int8_matrix(256, 2048), randn(2048, seed=1)
    x[100:700:100] *= 20
    x = x.bfloat16()
    x64, codes, absmax = arrays(x, matrix)
    exact = oracle.decoded(codes, absmax) @ x64
    paper = int8_matmul(x[None], matrix.weight, matrix.absmax, threshold=6.0)[0].double().numpy()
    ideal = torch.from_numpy(exact).bfloat16().double().numpy()
    error, papers, least = (np.abs(y - exact).max() for y in (product(x, matrix).double().numpy(), paper, ideal))
    check_bound("row product: bfloat16 worst error, of LLM.int8()'s", error / papers, 1)
    check_bound("row product: bfloat16 worst error, of one rounding's", error / least, 1.05)


# ---------------------------------------------------------------------------------------------------------------------
# bfloat16


@needs_compiler
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "odd offset"])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_bf16_product(n: int, k: int, offset: int, check_bound: Check) -> None:
    """Two at a time where K is even and the weight begins at a whole word, one at a time elsewhere."""
    weight = randn(n * k + offset, seed=0).bfloat16()[offset:].view(n, k)
    x = randn(k, seed=1).bfloat16()
    exact, mass = weight.double() @ x.double(), weight.double().abs() @ x.double().abs()
    # Products of bfloat16 are exact in float32, a sum of K rounds K times; then one rounding to bfloat16.
    bound = 1.01 * (k * FLOAT32 * mass + UNIT[torch.bfloat16] * exact.abs())
    for name, product_of in (("C", product), ("reference", row_product_reference)):
        error = (product_of(x, RowMatrix(weight)).double() - exact).abs()
        check_bound(f"row product: bfloat16 vs float64, {name}", worst(error.numpy(), bound.numpy()), 1)


@needs_compiler
def test_bf16_takes_what_is_not_finite_as_it_comes() -> None:
    x = torch.tensor([1.0, torch.inf], dtype=torch.bfloat16)
    weight = torch.tensor([[1, 1], [1, -1], [1, 0], [torch.nan, 1]], dtype=torch.bfloat16)
    assert product(x, RowMatrix(weight)).float().nan_to_num(nan=7.0, posinf=1.0, neginf=-1.0).tolist() == [1, -1, 7, 7]


# ---------------------------------------------------------------------------------------------------------------------
# With an adapter


def with_adapter(base: RowMatrix, r: int) -> RowMatrix:
    n, k = base.weight.shape
    lora_A, lora_B = randn(r, k, seed=2).bfloat16(), randn(n, r, seed=3).bfloat16()
    return RowMatrix(base.weight, base.absmax, lora_A, lora_B, lora_scale=1.5)


@needs_compiler
@pytest.mark.parametrize("product_of", [row_product, row_product_reference], ids=["C", "reference"])
@pytest.mark.parametrize("r", [1, 3, 8])
@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
def test_adapter(int8: bool, r: int, product_of: Callable, check_bound: Check) -> None:
    n, k = 33, 130
    base = int8_matrix(n, k) if int8 else RowMatrix(randn(n, k, seed=0).bfloat16())
    matrix, x = with_adapter(base, r), randn(k, seed=1).bfloat16()
    dense = oracle.decoded(*arrays(x, base)[1:]) if int8 else base.weight.double().numpy()
    lora = [part.double().numpy() for part in (matrix.lora_A, matrix.lora_B)]
    arguments = (x.double().numpy()[None], dense, *lora, matrix.lora_scale)
    error = np.abs(product_of(x, matrix).double().numpy() - lora_oracle.lora_forward(*arguments)[0])
    # Four roundings to bfloat16 on the longest way, A x, α/r times it, B times that, the sum; in float32 those of sums.
    rounding = 4 * UNIT[torch.bfloat16] * (1 + 4 * UNIT[torch.bfloat16]) + (k + r) * FLOAT32
    bound = rounding * lora_oracle.lora_magnitude(*arguments)[0]
    if int8:
        bound += oracle.product_bound(*arrays(x, base), FLOAT32)
    check_bound("row product: with an adapter vs float64", worst(error, bound), 1)


# ---------------------------------------------------------------------------------------------------------------------
# Where it applies, and what it does not depend on


@needs_compiler
@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
def test_the_number_of_threads_changes_no_bit(int8: bool) -> None:
    base = int8_matrix(513, 300) if int8 else RowMatrix(randn(513, 300, seed=0).bfloat16())
    matrix, x = with_adapter(base, 4), randn(300, seed=1).bfloat16()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(product(x, matrix))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@needs_compiler
def test_a_row_may_have_gaps() -> None:
    matrix, wide = int8_matrix(5, 40), randn(80, seed=1)
    assert torch.equal(product(wide[::2], matrix), product(wide[::2].contiguous(), matrix))


def unusable() -> dict[str, tuple[torch.dtype, RowMatrix]]:
    bf16, int8 = torch.ones(6, 6, dtype=torch.bfloat16), int8_matrix(6, 6)
    lora = {"lora_A": bf16[:2], "lora_B": bf16[:, :2].contiguous()}
    return {
        "float32 weight": (torch.float32, RowMatrix(bf16.float())),
        "float16 weight": (torch.float16, RowMatrix(bf16.half())),
        "float32 row, bfloat16 weight": (torch.float32, RowMatrix(bf16)),
        "float32 row, adapter": (torch.float32, RowMatrix(int8.weight, int8.absmax, **lora)),
        "float16 row, int8": (torch.float16, int8),
        "transposed weight": (torch.bfloat16, RowMatrix(bf16.T[:, ::2])),
        "transposed codes": (torch.bfloat16, RowMatrix(int8.weight.T, int8.absmax)),
        "adapter with gaps": (torch.bfloat16, RowMatrix(bf16, lora_A=bf16[:2], lora_B=bf16[:, :2])),
        "uint8 codes": (torch.bfloat16, RowMatrix(int8.weight.view(torch.uint8), int8.absmax)),
        "float64 scales": (torch.bfloat16, RowMatrix(int8.weight, int8.absmax.double())),
        "too few scales": (torch.bfloat16, RowMatrix(int8.weight, int8.absmax[:-1])),
        "float32 adapter": (torch.bfloat16, RowMatrix(bf16, lora_A=bf16[:2].float(), lora_B=bf16[:, :2].contiguous())),
        "adapter of two ranks": (torch.bfloat16, RowMatrix(bf16, lora_A=bf16[:2], lora_B=bf16[:, :3].contiguous())),
        "half an adapter": (torch.bfloat16, RowMatrix(bf16, lora_A=bf16[:2])),
        "meta": (torch.bfloat16, RowMatrix(bf16.to("meta"))),
    }


@pytest.mark.parametrize("name", unusable())
def test_other_layouts_and_dtypes_are_left_to_others(name: str) -> None:
    dtype, matrix = unusable()[name]
    assert row_product(torch.ones(matrix.weight.shape[1], dtype=dtype), matrix) is None


def test_a_row_of_another_length_or_device_is_left_to_others() -> None:
    assert row_product(torch.ones(5), int8_matrix(6, 6)) is None
    assert row_product(torch.ones(6, device="meta"), int8_matrix(6, 6)) is None


@needs_compiler
@pytest.mark.parametrize("n", [rows.MAX_ROWS, rows.MAX_ROWS + 1])
def test_results_have_room_on_the_stack(n: int) -> None:
    y = row_product(torch.ones(1, dtype=torch.bfloat16), RowMatrix(torch.ones(n, 1, dtype=torch.bfloat16)))
    assert (y is not None) == (n == rows.MAX_ROWS)


@pytest.mark.parametrize("largest", [0, 1e-45, 9.5e-35])
def test_reference_takes_tiny_rows_for_zero(largest: float) -> None:
    q, scale = rows.fixed_point_reference(torch.tensor([largest, 0.0, -largest / 2]))
    assert q.tolist() == [0, 0, 0] and scale == 0


def test_single_rows() -> None:
    row = torch.ones(1, 1, 4)
    assert not is_single_row(row, 4)  # somebody might want a gradient
    with torch.no_grad():
        assert is_single_row(row, 4) and is_single_row(row[0, 0], 4)
        assert not is_single_row(torch.ones(2, 4), 4)
        assert not is_single_row(row.to("meta"), 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_single_row(row, 4)
    with torch.inference_mode():
        assert is_single_row(row, 4)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "load_library", lambda *_: None)
    rows._library.cache_clear()
    try:
        assert row_product(torch.ones(6), int8_matrix(6, 6)) is None
        assert not rows.RowBlocks([], n_heads=1, eps=1e-6).usable
    finally:
        rows._library.cache_clear()
