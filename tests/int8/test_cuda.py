"""The two operators: the formula, what PyTorch asks of an operator, and the real thing where there is a GPU."""

import pytest
import torch
from int8_operands import DTYPES, allowed, draw, expected_forward, expected_gradient

from int8 import int8_matmul_reference
from int8.cuda import int8_forward, int8_input_gradient, kernels_apply

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outliers", [0, 6])
def test_forward_is_the_formula(dtype, outliers, check_bound):
    x, codes, absmax, left, right = operands = draw(dtype=dtype, outliers=outliers)
    output = int8_forward(x, codes, absmax, 6.0, left, right)
    assert output.dtype == dtype
    error = (output.double() - expected_forward(*operands).double()).abs()
    check_bound(f"int8_forward, {str(dtype)[6:]}", (error / allowed(*operands)).max(), 1.0)
    without = int8_forward(x, codes, absmax, 6.0)
    torch.testing.assert_close(without, int8_matmul_reference(x, codes, absmax, 6.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_input_gradient_is_the_formula(dtype, check_bound):
    _, codes, absmax, _, _ = draw()
    grad = torch.randn(24, 40, generator=torch.Generator().manual_seed(1)).to(dtype)
    output = int8_input_gradient(grad, codes, absmax)
    assert output.dtype == dtype
    expected, bound = expected_gradient(grad, codes, absmax)
    error = (output.double() - expected).abs()
    check_bound(f"int8_input_gradient, {str(dtype)[6:]}", (error / bound).max(), 1.0)


def test_what_pytorch_asks_of_an_operator():
    """Schema, shapes without running, tracing: PyTorch's own check."""
    x, codes, absmax, left, right = draw(dtype=torch.bfloat16)
    torch.library.opcheck(int8_forward, (x, codes, absmax, 6.0))
    torch.library.opcheck(int8_forward, (x, codes, absmax, 0.0, left, right))
    torch.library.opcheck(int8_input_gradient, (torch.randn(24, 40), codes, absmax))


def test_shapes_without_running():
    x, codes, absmax, _, _ = (tensor.to("meta") for tensor in draw(dtype=torch.bfloat16))
    output = int8_forward(x, codes, absmax, 6.0)
    assert (output.shape, output.dtype, output.is_meta) == ((24, 40), torch.bfloat16, True)
    assert int8_input_gradient(output, codes, absmax).shape == x.shape


def test_autocast_does_not_round_the_sums():
    x, codes, absmax, left, right = draw()
    expected = int8_forward(x, codes, absmax, 6.0, left, right)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(int8_forward(x, codes, absmax, 6.0, left, right), expected)


def test_kernels_do_not_apply_on_a_cpu():
    x, codes, *_ = draw()
    assert not kernels_apply(x, codes)


# ---------------------------------------------------------------------------------------------------------------------
# On a GPU


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 4096, 4096), (512, 4096, 11008), (1000, 1001, 999)])
@pytest.mark.parametrize("outliers", [0, 6, 100])
def test_gpu_forward(dtype, shape, outliers, check_bound):
    x, codes, absmax, left, right = operands = draw(*shape, dtype=dtype, outliers=outliers, device="cuda")
    assert kernels_apply(x, codes)
    output = int8_forward(x, codes, absmax, 6.0, left, right)
    error = (output.double() - expected_forward(*operands).double()).abs().cpu()
    check_bound(f"GPU int8_forward, {str(dtype)[6:]}", (error / allowed(*operands)).max(), 1.0)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(512, 4096, 11008), (1000, 1001, 999)])
def test_gpu_input_gradient(dtype, shape, check_bound):
    rows, _, columns = shape
    _, codes, absmax, _, _ = draw(*shape, device="cuda")
    grad = torch.randn(rows, columns, device="cuda").to(dtype)
    expected, bound = expected_gradient(grad, codes, absmax)
    error = (int8_input_gradient(grad, codes, absmax).double() - expected).abs()
    check_bound(f"GPU int8_input_gradient, {str(dtype)[6:]}", (error / bound).max(), 1.0)


@needs_gpu
def test_gpu_host_never_waits():
    x, codes, absmax, left, right = draw(64, 256, 128, dtype=torch.bfloat16, device="cuda")
    grad = torch.randn(64, 128, device="cuda", dtype=torch.bfloat16)

    def both() -> None:
        int8_forward(x, codes, absmax, 6.0, left, right)
        int8_input_gradient(grad, codes, absmax)

    both()  # finds its fastest ways, for which it may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")
