"""Many rows to int8 in C, outlier columns, the scaling of a product, against PyTorch's operators: equal bit by bit."""

import pytest
import torch

import native.quantize
from int8 import dequantize_rowwise, int8_matmul, outlier_columns, quantize_rowwise
from native import columns_reaching, decode_columns, decode_slice, quantize_rows, scale_product

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(64, 4096), (7, 33), (1, 1), (3, 1000), (0, 5)]

pytestmark = pytest.mark.skipif(native.quantize._library() is None, reason="install a C compiler")


def drawn(shape: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_operators(monkeypatch: pytest.MonkeyPatch, work):
    with monkeypatch.context() as patch:
        patch.setattr(native.quantize, "_library", lambda: None)
        return work()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_equal(shape, dtype, monkeypatch):
    x = drawn(shape, dtype)
    assert quantize_rows(x) is not None
    for mine, theirs in zip(quantize_rowwise(x), by_operators(monkeypatch, lambda: quantize_rowwise(x)), strict=True):
        assert torch.equal(mine, theirs)


def test_every_half(monkeypatch):
    """All finite float16, subnormals included, in rows of 64."""
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    x = halves.where(halves.isfinite(), torch.zeros_like(halves)).view(-1, 64)
    for mine, theirs in zip(quantize_rowwise(x), by_operators(monkeypatch, lambda: quantize_rowwise(x)), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_has_no_scale_and_spoils_no_other_row(dtype):
    x = drawn((3, 50), dtype)
    x[0, 3], x[1, 7] = torch.inf, torch.nan
    codes, absmax = quantize_rowwise(x)
    assert absmax.isfinite().tolist() == [False, False, True]
    assert torch.equal(codes[2], quantize_rowwise(x[2:])[0][0])


def test_strides_do_not_matter():
    x = drawn((40, 30), torch.float32)
    assert torch.equal(quantize_rowwise(x.t())[0], quantize_rowwise(x.t().contiguous())[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_blanked_columns_count_as_zero(dtype):
    x, blank = drawn((9, 70), dtype), torch.tensor([0, 33, 69])
    expected = quantize_rowwise(x.index_fill(1, blank, 0))
    for mine, theirs in zip(quantize_rows(x, blank), expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [1.0, 2.5, 100.0])
def test_columns_are_the_same(dtype, threshold, monkeypatch):
    x = drawn((50, 400), dtype)
    x[3, 5], x[4, 6], x[5, 7] = threshold, torch.nan, -threshold
    mine = columns_reaching(x, threshold)
    assert mine is not None and {5, 6, 7} <= set(mine.tolist())
    assert torch.equal(mine, by_operators(monkeypatch, lambda: outlier_columns(x, threshold)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scaled_product_is_the_same(dtype, monkeypatch):
    product = torch.randint(-(2**30), 2**30, (33, 65), dtype=torch.int32)
    rows, columns = torch.rand(33) + 0.5, torch.rand(65) + 0.5
    mine = torch.empty(product.shape, dtype=dtype)
    assert scale_product(product, rows, columns, mine)
    assert torch.equal(mine, torch.mul(product, columns).mul_(rows[:, None]).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outliers", [0, 6])
def test_the_whole_product_is_the_same_without_c(dtype, outliers, monkeypatch, check_bound):
    codes, absmax = quantize_rowwise(drawn((48, 200), torch.float32, seed=1))
    x = drawn((20, 200), dtype)
    x[:, :outliers] *= 20
    mine = int8_matmul(x, codes, absmax, 6.0).float()
    theirs = by_operators(monkeypatch, lambda: int8_matmul(x, codes, absmax, 6.0)).float()
    if not outliers:
        assert torch.equal(mine, theirs)
    else:  # the outliers' terms are added in another order, in float32, before one rounding to dtype
        error = ((mine - theirs).abs() / theirs.abs().amax()).amax().item()
        check_bound(f"int8 product with outliers, C vs operators, {dtype}", error, torch.finfo(dtype).eps * 4)


def test_decoded_columns_are_the_same():
    codes, absmax = quantize_rowwise(drawn((31, 90), torch.float32))
    columns = torch.tensor([2, 40, 89])
    mine = decode_columns(codes, absmax / 127, columns)
    assert mine is not None and torch.equal(mine, dequantize_rowwise(codes[:, columns], absmax))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoded_slice_is_the_same(dtype):
    codes, absmax = quantize_rowwise(drawn((31, 90), torch.float32))
    for first, width in ((0, 90), (3, 64), (89, 1)):
        out = torch.empty(31, width, dtype=dtype)
        assert decode_slice(codes, absmax / 127, first, out)
        assert torch.equal(out, dequantize_rowwise(codes[:, first : first + width], absmax, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_are_scaled_before_they_are_quantized(dtype):
    x, scale = drawn((9, 70), dtype), torch.rand(70) + 0.5
    for mine, theirs in zip(quantize_rows(x, column_scale=scale), quantize_rowwise(x.float() * scale), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("columns", [64, 65, 200, 1])  # whole strips and a rest
@pytest.mark.parametrize("scaled", [True, False])
def test_a_thin_product_is_added(columns, scaled, check_bound):
    product = torch.randint(-(2**20), 2**20, (37, columns), dtype=torch.int32)
    rows, scale = torch.rand(37), torch.rand(columns) if scaled else None
    left, right = drawn((37, 5), torch.float32), drawn((columns, 5), torch.float32, seed=1)
    mine = torch.empty(37, columns)
    assert scale_product(product, rows, scale, mine, (left, right))
    first = product.double() * rows.double()[:, None] * (1 if scale is None else scale.double())
    mass = first.abs() + left.double().abs() @ right.double().abs().t()
    error = (mine - first - left.double() @ right.double().t()).abs() / mass
    # the cast of the integer, two products, five terms and their sums
    check_bound("scaled product plus a thin one, C vs float64", error.max().item(), 9 * 2.0**-24)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_does_not_matter(threads):
    x, before = drawn((100, 300), torch.bfloat16), torch.get_num_threads()
    expected = quantize_rowwise(x), outlier_columns(x, 2.0)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(quantize_rowwise(x)[0], expected[0][0])
        assert torch.equal(outlier_columns(x, 2.0), expected[1])
    finally:
        torch.set_num_threads(before)
