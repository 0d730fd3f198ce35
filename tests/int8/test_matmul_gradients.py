"""Gradients of the int8 product: dX of a frozen weight, dX and dW of a trainable one, and what surrounds autograd."""

import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import int8 as oracle
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from int8 import (
    dequantize_rowwise,
    input_gradient_reference,
    int8_linear_trainable,
    int8_matmul,
    quantize_rowwise,
    scaled,
)
from int8 import (
    gradient as dx,
)
from int8.int_mm import MAX_INNER

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 8, 8), (5, 33, 7), (17, 64, 30), (40, 257, 130)]


def draw(rows, inner, columns, *, dtype=torch.float32, outliers=3) -> tuple[Tensor, Tensor, Tensor]:
    """x with some columns twenty times the others, requiring a gradient; a weight; a gradient of the output."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inner, generator=generator)
    x[:, :outliers] *= 20
    weight = torch.randn(columns, inner, generator=generator) / inner**0.5
    grad = torch.randn(rows, columns, generator=generator)
    return x.to(dtype).requires_grad_(), weight, grad.to(dtype)


def unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def product_bound(a: np.ndarray, b: np.ndarray, dtype: torch.dtype, *, operand_roundings: int) -> np.ndarray:
    """For a product summed in float32 and rounded to dtype, of operands of which some were rounded to dtype before."""
    mass, u = np.abs(a) @ np.abs(b), unit(dtype)
    return 1.02 * ((operand_roundings * u + (a.shape[1] + 3) * 2.0**-24) * mass + u * np.abs(a @ b)) + 1e-30


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_frozen_weight_dx_is_dy_times_the_decoded_weight(dtype, shape, threshold, check_bound):
    x, weight, grad = draw(*shape, dtype=dtype)
    codes, absmax = quantize_rowwise(weight)
    int8_matmul(x, codes, absmax, threshold).backward(grad)
    decoded = codes.double().numpy() * absmax.double().numpy()[:, None] / 127
    expected = grad.double().numpy() @ decoded
    assert x.grad is not None and x.grad.dtype == dtype
    error = np.abs(x.grad.double().numpy() - expected)
    bound = product_bound(grad.double().numpy(), decoded, dtype, operand_roundings=1)
    check_bound(f"int8_matmul: dX vs float64 formula, {str(dtype)[6:]}", (error / bound).max(), 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_trainable_weight_gradients_are_the_float_formulas(dtype, shape, threshold, check_bound):
    x, weight, grad = draw(*shape, dtype=dtype)
    weight = weight.to(dtype).requires_grad_()
    int8_linear_trainable(x, weight, threshold).backward(grad)
    x64, weight64, grad64 = (tensor.detach().double().numpy() for tensor in (x, weight, grad))
    for name, gradient, a, b in [("dX", x.grad, grad64, weight64), ("dW", weight.grad, grad64.T, x64)]:
        assert gradient is not None and gradient.dtype == dtype
        error = np.abs(gradient.double().numpy() - a @ b)
        bound = product_bound(a, b, dtype, operand_roundings=0)
        check_bound(f"int8_linear_trainable: {name} vs float64 formula, {str(dtype)[6:]}", (error / bound).max(), 1.0)


def test_three_dimensional_and_broadcast_gradients():
    x, weight, _ = draw(12, 40, 10)
    codes, absmax = quantize_rowwise(weight)
    int8_matmul(x, codes, absmax, 6.0).sum().backward()  # dY is an expanded scalar
    flat, x.grad = x.grad, None
    int8_matmul(x.reshape(3, 4, 40).transpose(0, 1), codes, absmax, 6.0).sum().backward()
    torch.testing.assert_close(x.grad, flat, rtol=0, atol=0)
    expected = torch.ones(12, 10) @ dequantize_rowwise(codes, absmax)
    torch.testing.assert_close(flat, expected, rtol=0, atol=14 * 2**-24 * expected.abs().max().item() * 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_fast_dx_is_its_formula(dtype, shape, check_bound):
    """The codes are the reference's (a float32 product before rounding), the integer sums exact: what is left is the
    cast of a sum to float32, a product, and the rounding to dtype."""
    x, weight, grad = draw(*shape, dtype=dtype)
    codes, absmax = quantize_rowwise(weight)
    int8_matmul(x, codes, absmax, 6.0, backward="fast").backward(grad)
    expected = input_gradient_reference(grad, codes, absmax, "fast").double()
    assert x.grad is not None and x.grad.dtype == dtype
    # A gradient that float32 puts on the other side of a half, of which there may be one in a row, moves by one code.
    step = (grad.double() * absmax.double() / 127).abs().amax(1, keepdim=True) / 127 * 127
    error = ((x.grad.double() - expected).abs() - 2 * unit(dtype) * expected.abs() - 1e-30) / step
    check_bound(f"int8_matmul: fast dX vs its formula, {str(dtype)[6:]}", error.max().item(), 1.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_fast_dx_stays_within_its_bound(shape, check_bound):
    x, weight, grad = draw(*shape)
    codes, absmax = quantize_rowwise(weight)
    int8_matmul(x, codes, absmax, 6.0, backward="fast").backward(grad)
    exact = grad.double() @ (codes.double() * absmax.double()[:, None] / 127)
    largest = (grad.double() * absmax.double() / 127).abs().amax(1, keepdim=True)  # c_G
    bound = largest / 254 * codes.double().abs().sum(0)
    check_bound("int8_matmul: fast dX vs exact, by its bound", ((x.grad - exact).abs() / bound).max().item(), 1.0)


def test_a_fast_gradient_that_is_not_finite_spoils_its_own_row_only():
    x, weight, grad = draw(5, 33, 7)
    codes, absmax = quantize_rowwise(weight)
    grad[1, 2], grad[3, 0] = torch.nan, torch.inf
    int8_matmul(x, codes, absmax, 6.0, backward="fast").backward(grad)
    assert x.grad is not None and x.grad.isfinite().all(1).tolist() == [True, False, True, False, True]


def test_an_unknown_way_back_is_refused():
    x, weight, _ = draw(5, 33, 7)
    with pytest.raises(ValueError, match=r"backward is 'quick'.*exact, fast"):
        int8_matmul(x, *quantize_rowwise(weight), 6.0, backward="quick")


def test_a_fast_sum_that_could_overflow_is_refused_in_the_forward_pass():
    codes, absmax = torch.zeros(MAX_INNER + 1, 2, dtype=torch.int8), torch.ones(MAX_INNER + 1)
    assert int8_matmul(torch.ones(1, 2), codes, absmax, 6.0).shape == (1, MAX_INNER + 1)
    with pytest.raises(ValueError, match=r"133145 out-features.*exact"):
        int8_matmul(torch.ones(1, 2), codes, absmax, 6.0, backward="fast")


@pytest.mark.parametrize("rank", [3, 100])  # added on the way out, or as a product of its own
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_is_added_before_the_rounding(dtype, rank, check_bound):
    x, weight, grad = draw(17, 64, 30, dtype=dtype)
    codes, absmax = quantize_rowwise(weight)
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(17, rank, generator=generator).to(dtype).requires_grad_()
    right = torch.randn(30, rank, generator=generator).requires_grad_()
    wide = int8_matmul(x.detach().float(), codes, absmax, 6.0)  # the codes of x are those of its dtype
    y = int8_matmul(x, codes, absmax, 6.0, update=(left, right))
    y.backward(grad)
    expected = wide.double() + left.double() @ right.double().t()
    mass = wide.double().abs() + left.double().abs() @ right.double().abs().t()
    bound = unit(dtype) * expected.abs() + (rank + 80) * 2.0**-24 * mass  # sums of rank, outliers and the product
    check_bound(f"int8 product plus update, {str(dtype)[6:]}, rank {rank}", ((y - expected).abs() / bound).max(), 1.0)
    for name, gradient, a, b in [("dL", left.grad, grad, right), ("dR", right.grad, grad.t(), left)]:
        assert gradient is not None
        a, b = a.detach().double().numpy(), b.detach().double().numpy()
        error = np.abs(gradient.double().numpy() - a @ b)
        bound = product_bound(a, b, dtype, operand_roundings=1)
        check_bound(f"int8 product plus update: {name}, {str(dtype)[6:]}, rank {rank}", (error / bound).max(), 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_at_a_time_change_nothing(dtype, monkeypatch):
    x, weight, grad = draw(17, 64, 30, dtype=dtype)
    codes, absmax = quantize_rowwise(weight)
    left, right = torch.randn(17, 3).to(dtype), torch.randn(30, 3)
    results = []
    for rows in (1024, 5):
        monkeypatch.setattr(scaled, "ROWS", rows)
        y = int8_matmul(x, codes, absmax, 6.0, backward="fast", update=(left, right))
        x.grad = None
        y.backward(grad)
        results.append((y, x.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_decoding_in_slices_changes_nothing(dtype, monkeypatch):
    """dX's columns come from slices of the weight's; 7 columns each leave a partial last one."""
    _x, weight, grad = draw(6, 40, 10, dtype=dtype)
    codes, absmax = quantize_rowwise(weight)
    whole = dx._times_decoded(grad, codes, absmax)
    monkeypatch.setattr(dx, "DECODE_ELEMENTS", 70)
    sliced = dx._times_decoded(grad, codes, absmax)
    assert sliced.shape == (6, 40)
    bound = 2 * product_bound(
        grad.double().numpy(), dequantize_rowwise(codes, absmax).double().numpy(), dtype, operand_roundings=0
    )
    assert (np.abs(sliced.double().numpy() - whole.double().numpy()) <= bound).all()


def test_straight_through_is_the_true_derivative_where_nothing_is_rounded(check_bound):
    """With every column an outlier the frozen product is linear in x, so a finite difference of any size is exact."""
    x, weight, grad = draw(6, 40, 10)
    quantized = quantize_rowwise(weight)
    direction = torch.randn(6, 40, generator=torch.Generator().manual_seed(9))
    before, after = (int8_matmul(point, *quantized, 1e-30) for point in (x, x + direction))
    before.backward(grad)
    difference = ((after - before).double() * grad.double()).sum().item()
    derivative = (x.grad.double() * direction.double()).sum().item()
    # Outputs of size ~60 carry float32 errors of ~43 roundings each; the sum weighs 60 of them by |dY|.
    bound = 43 * 2**-24 * ((before.abs() + after.abs()) * grad.abs()).sum().item()
    check_bound("int8_matmul: dX vs finite difference", abs(difference - derivative), bound)


def test_gradients_agree_with_a_linear_over_the_decoded_weight():
    x, weight, grad = draw(9, 64, 16, dtype=torch.bfloat16)
    codes, absmax = quantize_rowwise(weight)
    int8_matmul(x, codes, absmax, 6.0).backward(grad)
    int8_grad, x.grad = x.grad, None
    F.linear(x, dequantize_rowwise(codes, absmax, torch.bfloat16)).backward(grad)
    torch.testing.assert_close(int8_grad, x.grad, rtol=2**-7, atol=2**-9)


def test_int8_weight_gradient_needs_scales_per_column():
    """Were dW = Xᵀ·dY done in int8, its sum over rows would need dY and X quantized column-wise.

    Computed below as it is stored, the transpose: dYᵀ·X.

    bitsandbytes takes the codes of a row-wise quantized dY and scales by the absmax of its columns. Where rows of dY
    differ in size, as those of tokens do, the result has little to do with dW.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=generator).double().numpy()
    sizes = torch.logspace(-2, 0, 64)[:, None]
    dy = (torch.randn(64, 16, generator=generator) * sizes).double().numpy()
    exact = dy.T @ x
    x_codes_t, c_x = oracle.quantize_rows(x.T)
    dy_codes_t, c_dy = oracle.quantize_rows(dy.T)
    dy_row_codes, _ = oracle.quantize_rows(dy)
    scales = np.outer(c_dy, c_x) / 127**2

    def relative_error(gradient: np.ndarray) -> float:
        return float(np.linalg.norm(gradient - exact) / np.linalg.norm(exact))

    assert relative_error(dy_codes_t @ x_codes_t.T * scales) < 0.02
    assert relative_error(dy_row_codes.T @ x_codes_t.T * scales) > 0.5


def test_nothing_of_x_is_kept_for_a_frozen_weight():
    x, weight, _ = draw(50, 64, 8)
    codes, absmax = quantize_rowwise(weight)
    saved: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        int8_matmul(x, codes, absmax, 6.0)
    assert {tensor.data_ptr() for tensor in saved} == {codes.data_ptr(), absmax.data_ptr()}

    hidden = x * 1
    reference = weakref.ref(hidden)
    output = int8_matmul(hidden, codes, absmax, 6.0)
    del hidden
    assert output.requires_grad and reference() is None


def test_only_what_needs_a_gradient_gets_one():
    x, weight, grad = draw(4, 16, 6)
    quantized = quantize_rowwise(weight)
    assert not int8_matmul(x.detach(), *quantized, 6.0).requires_grad
    with torch.no_grad():
        assert not int8_matmul(x, *quantized, 6.0).requires_grad
    weight.requires_grad_()
    int8_linear_trainable(x.detach(), weight, 6.0).backward(grad)
    assert weight.grad is not None and x.grad is None
    weight = weight.detach()
    int8_linear_trainable(x, weight, 6.0).backward(grad)
    assert weight.grad is None and x.grad is not None


def test_no_rows_no_gradient():
    _, weight, _ = draw(4, 16, 6)
    x, weight = torch.empty(0, 16, requires_grad=True), weight.requires_grad_()
    int8_matmul(x, *quantize_rowwise(weight.detach()), 6.0).sum().backward()
    assert x.grad is not None and x.grad.shape == (0, 16)
    int8_linear_trainable(x, weight, 6.0).sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def test_a_non_finite_gradient_stays_visible():
    x, weight, grad = draw(4, 16, 6)
    grad[2, 3] = float("nan")
    int8_matmul(x, *quantize_rowwise(weight), 6.0).backward(grad)
    assert x.grad.isfinite().all(dim=1).tolist() == [True, True, False, True]


def test_gradient_checkpointing_gives_the_same_gradients():
    x, weight, grad = draw(6, 40, 10)
    quantized = quantize_rowwise(weight)
    int8_matmul(x, *quantized, 6.0).backward(grad)
    plain, x.grad = x.grad, None
    checkpoint(lambda hidden: int8_matmul(hidden, *quantized, 6.0), x, use_reentrant=False).backward(grad)
    assert torch.equal(x.grad, plain)


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_gradients_reach_float32_leaves(inside):
    """x and a float32 master weight are cast for the product; their gradients come back in float32."""
    x, weight, _ = draw(6, 40, 10)
    master = weight.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = int8_matmul(x, *quantize_rowwise(weight), 6.0) + int8_linear_trainable(x, master, 6.0)
        if inside:
            output.sum().backward()
    if not inside:
        output.sum().backward()
    assert x.grad.dtype == master.grad.dtype == torch.float32
    expected = torch.ones(6, 10) @ (dequantize_rowwise(*quantize_rowwise(weight)) + weight)
    # bf16 operands, two bf16 results and their bf16 sum.
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=5 * 2**-8 * expected.abs().max().item())
    torch.testing.assert_close(master.grad, torch.ones(10, 6) @ x.detach(), rtol=2**-6, atol=2**-6 * 20)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_inside_autocast_is_not_cast_again(dtype):
    x, weight, grad = draw(6, 40, 10, dtype=dtype)
    quantized, weight = quantize_rowwise(weight), weight.to(dtype).requires_grad_()
    gradients = []
    for enabled in (False, True):
        frozen, trainable = int8_matmul(x, *quantized, 6.0), int8_linear_trainable(x, weight, 6.0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            gradients.append(
                [*torch.autograd.grad(frozen, x, grad), *torch.autograd.grad(trainable, (x, weight), grad)]
            )
    for outside, inside in zip(*gradients, strict=True):
        assert torch.equal(outside, inside)


def test_second_derivatives_are_refused():
    x, weight, _ = draw(4, 16, 6)
    output = int8_matmul(x, *quantize_rowwise(weight), 6.0)
    (first,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
