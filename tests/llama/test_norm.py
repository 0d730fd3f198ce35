"""RMSNorm: fast against reference, reference against float64, and its invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.llama import rms_norm

from llama.norm import RMSNorm, rms_norm_reference

FLOAT32_EPS = torch.finfo(torch.float32).eps


def test_by_hand():
    # RMS of (1, 7) is √25 = 5
    assert torch.equal(
        rms_norm_reference(torch.tensor([1.0, 7.0]), torch.tensor([5.0, 10.0]), 0.0), torch.tensor([1.0, 14.0])
    )


@pytest.mark.parametrize("size", [1, 8, 288, 4096])
def test_reference_against_float64(check_bound, size):
    generator = torch.Generator().manual_seed(size)
    a, gain = torch.randn(5, size, generator=generator), torch.randn(size, generator=generator)
    expected = rms_norm(a.numpy(), gain.numpy(), 1e-6)
    error = np.abs(rms_norm_reference(a, gain, 1e-6).numpy() - expected).max()
    # The sum of n squares has a relative error of about √n roundings, half of it after the root; three more follow.
    check_bound("rmsnorm: reference vs float64", error, (size**0.5 / 2 + 3) * FLOAT32_EPS * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_module_against_reference(check_bound, dtype):
    norm = RMSNorm(96, 1e-5).to(dtype)
    generator = torch.Generator().manual_seed(0)
    norm.weight.data = torch.randn(96, generator=generator).to(dtype)
    a = (torch.randn(4, 7, 96, generator=generator) * 3).to(dtype)
    expected = rms_norm_reference(a.double(), norm.weight.detach().double(), 1e-5)
    output = norm(a)
    assert output.dtype == dtype
    error = ((output.detach().double() - expected).abs() / expected.abs().clamp(min=1e-3)).max()
    # Two roundings to the dtype, of the quotient and of the product, after the float32 statistic of 96 squares.
    bound = 1.5 * torch.finfo(dtype).eps + (96**0.5 / 2) * FLOAT32_EPS / 2
    check_bound(f"rmsnorm: module vs reference, {dtype}".replace("torch.", ""), error, bound)


def test_statistics_are_float32_in_16_bits():
    a = torch.full((4096,), 100.0, dtype=torch.float16)  # the sum of squares, 4.1e7, overflows float16
    assert torch.allclose(RMSNorm(4096, 1e-6).half()(a).float(), torch.ones(4096), atol=1e-3)


@given(scale=st.floats(0.01, 100.0), seed=st.integers(0, 1000))
def test_invariants(scale, seed):
    a = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    norm = RMSNorm(32, 1e-30).double()
    assert torch.allclose(norm(scale * a), norm(a), rtol=1e-6)  # scale invariant
    assert torch.equal(norm(-a), -norm(a))  # odd
    assert torch.allclose(norm(a).pow(2).mean(-1), torch.ones(3, dtype=torch.float64), rtol=1e-6)  # unit RMS


def test_zero_input_stays_zero_and_finite():
    a = torch.zeros(2, 8, requires_grad=True)
    output = RMSNorm(8, 1e-6)(a)
    output.sum().backward()
    assert torch.equal(output, torch.zeros(2, 8))
    assert a.grad is not None and a.grad.isfinite().all()


def test_gradient():
    norm = RMSNorm(6, 1e-5).double()
    a = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    gain = norm.weight.detach().clone().requires_grad_()
    norm(a).square().sum().backward()
    own = a.grad.clone()
    a.grad = None
    rms_norm_reference(a, gain, 1e-5).square().sum().backward()
    assert torch.allclose(own, a.grad, atol=1e-6)  # the module's statistic is float32
