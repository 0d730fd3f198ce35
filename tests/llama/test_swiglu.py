"""SwiGLU: module against reference against float64, by hand, and its invariants."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles.llama import swiglu

from llama.swiglu import SwiGLU, swiglu_reference


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
