"""SwiGLU: module against reference against float64, by hand, and its invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.llama import swiglu

from llama.swiglu import SwiGLU, silu_product, silu_product_plain, swiglu_reference
from native import elementwise


def make(seed: int = 0) -> tuple[SwiGLU, torch.Tensor]:
    torch.manual_seed(seed)
    return SwiGLU(24, 64), torch.randn(2, 5, 24)


def test_by_hand():
    # x = 2, W = 1, V = 3: Swish(2) = 2/(1 + e⁻²) = 1.761594, times 6
    value = swiglu_reference(torch.tensor([2.0]), torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    assert torch.allclose(value, torch.tensor([10.569565]))


def test_biases_and_beta():
    x, w, v = torch.tensor([1.0]), torch.tensor([[1.0]]), torch.tensor([[1.0]])
    # gate 1 + 1 = 2, β = 0: σ(0) = ½, so Swish = 1; up 1 + 2 = 3
    assert torch.allclose(swiglu_reference(x, w, v, b=1.0, c=2.0, beta=0.0), torch.tensor([3.0]))


def test_module_against_reference_and_float64(check_bound):
    ffn, x = make()
    w1, w2, w3 = (w.weight.detach() for w in (ffn.w1, ffn.w2, ffn.w3))
    reference = swiglu_reference(x, w1.T, w3.T) @ w2.T
    oracle = swiglu(x.numpy(), w1.T.numpy(), w3.T.numpy(), w2.T.numpy())
    scale = np.abs(oracle).max()
    # Products of length 24 and 64, inputs of order 1: about √64 roundings of 2⁻²⁴ each.
    check_bound("swiglu: module vs reference", (ffn(x) - reference).abs().max() / scale, 8 * 2**-23)
    check_bound("swiglu: reference vs float64", np.abs(reference.numpy() - oracle).max() / scale, 8 * 2**-23)


@settings(deadline=None)  # the first call may compile C
@given(factor=st.floats(-4, 4), seed=st.integers(0, 100))
def test_linear_in_the_up_branch(factor, seed):
    ffn, x = make(seed)
    before = ffn(x)
    with torch.no_grad():
        ffn.w3.weight.mul_(factor)
    assert torch.allclose(ffn(x), factor * before, atol=1e-5)


def test_swapped_gate_and_up_are_told_apart():
    ffn, x = make()
    before = ffn(x)
    ffn.w1, ffn.w3 = ffn.w3, ffn.w1
    assert (ffn(x) - before).abs().max() > 0.01


def test_gradient_of_the_product():
    gate, up = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(silu_product, (gate.requires_grad_(), up.requires_grad_()))


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_gate_and_up_are_kept(device, dtype, compiler, monkeypatch):
    if not compiler:
        monkeypatch.setattr(elementwise, "_library", lambda: None)
    inputs, kept = [torch.randn(3, 8, dtype=dtype, device=device, requires_grad=True) for _ in range(2)], []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        output = silu_product(*inputs)
    assert list(map(id, kept)) == list(map(id, inputs))
    output.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == dtype and x.grad.shape == x.shape for x in inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_c_gradients_are_those_of_the_operators(dtype, monkeypatch):
    monkeypatch.setattr(elementwise, "_library", lambda: None)
    values, results = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)).to(dtype), []
    for function in (silu_product, silu_product_plain):
        gate, up = (x.clone().requires_grad_() for x in values[:2])
        function(gate, up).backward(values[2])
        results.append((gate.grad, up.grad))
    assert all(torch.equal(own, theirs) for own, theirs in zip(*results, strict=True))


def test_it_can_be_traced():
    ffn, x = make()
    assert torch.allclose(torch.compile(ffn, backend="eager", fullgraph=True)(x), ffn(x), atol=1e-6)
