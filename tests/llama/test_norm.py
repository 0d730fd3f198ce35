"""RMSNorm: fast against reference, reference against float64, and its invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.llama import rms_norm as oracle

from llama.norm import RMSNorm, rms_norm, rms_norm_plain, rms_norm_reference
from native import elementwise

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
    expected = oracle(a.numpy(), gain.numpy(), 1e-6)
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
    a, gain = (
        torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        for shape in ((3, 2, 6), (6,))
    )
    assert torch.autograd.gradcheck(lambda a, gain: rms_norm(a, gain, 1e-5), (a, gain))
    assert torch.autograd.gradcheck(lambda a: rms_norm(a, gain.detach(), 1e-5), a)
    assert torch.autograd.gradcheck(lambda gain: rms_norm(a.detach(), gain, 1e-5), gain)


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_the_input_is_kept(device, dtype, compiler, monkeypatch):
    if not compiler:
        monkeypatch.setattr(elementwise, "_library", lambda: None)
    norm, kept = RMSNorm(8, 1e-5).to(device, dtype), []
    a = torch.randn(2, 3, 8, dtype=dtype, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        output = norm(a)
    assert {id(x) for x in kept} == {id(a), id(norm.weight)}
    output.sum().backward()
    assert a.grad is not None and a.grad.dtype == dtype and a.grad.shape == a.shape


@pytest.mark.parametrize("train_gain", [True, False])
@pytest.mark.parametrize(("dtype", "gain_dtype"), [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_without_c_gradients_are_those_of_the_operators(dtype, gain_dtype, train_gain, monkeypatch):
    monkeypatch.setattr(elementwise, "_library", lambda: None)
    a, dy = (torch.randn(5, 16, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(2))
    gain = torch.randn(16, generator=torch.Generator().manual_seed(2)).to(gain_dtype)
    results = []
    for function in (rms_norm, rms_norm_plain):
        inputs = (a.clone().requires_grad_(), gain.clone().requires_grad_(train_gain))
        output = function(*inputs, 1e-5)
        output.backward(dy.to(output.dtype))
        results.append((output, *(x.grad for x in inputs)))
    for own, theirs in zip(*results, strict=True):
        assert (own is None and theirs is None) or (own.dtype == theirs.dtype and torch.equal(own, theirs))


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype, compiler, monkeypatch):
    if not compiler:
        monkeypatch.setattr(elementwise, "_library", lambda: None)
    norm = RMSNorm(8, 1e-5).to(dtype)
    for a in (torch.randn(3, 8), torch.randn(3, 8).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            output = norm(a)
        assert output.dtype == torch.promote_types(a.dtype, dtype) and torch.equal(output, norm(a))


def test_it_can_be_traced():
    norm, a = RMSNorm(8, 1e-5), torch.randn(3, 8)
    traced = torch.compile(norm, backend="eager", fullgraph=True)
    assert torch.allclose(traced(a), norm(a))
