"""Rotary embedding: the fast product against the paper's matrix, and RoFormer's properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.llama import rotary_matrix

from llama.rotary import (
    hf_row_order,
    rotary_frequencies,
    rotary_matrix_reference,
    rotary_table,
    rotate,
    rotate_plain,
)
from native import elementwise

THETA = 10_000.0
positions = st.integers(0, 2048)


def turn(x: torch.Tensor, *at: int) -> torch.Tensor:
    """Rotate the rows of x (T, D) by the given positions."""
    cos, sin = rotary_table(torch.tensor(at), x.shape[-1], THETA)
    return rotate(x[None, :, None, :], cos, sin)[0, :, 0]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("position", [0, 1, 7, 2047])
@pytest.mark.parametrize("dim", [2, 8, 128])
def test_matrix_reference_against_oracle(check_bound, position, dim):
    error = np.abs(rotary_matrix_reference(position, dim, THETA).numpy() - rotary_matrix(position, dim, THETA)).max()
    check_bound("rotary: reference matrix vs float64", error, 1e-12)  # position × a float64 rounding of the angle


@pytest.mark.parametrize("position", [0, 1, 7, 500, 2047])
def test_rotate_is_the_papers_matrix(check_bound, position):
    x = random(1, 64)
    expected = rotary_matrix_reference(position, 64, THETA) @ x[0].double()
    error = (turn(x, position)[0].double() - expected).abs().max()
    # The float32 angle m·θ_i is off by a rounding of m for θ_1 = 1: m · 2⁻²⁴ radians, times |x| < 4.
    check_bound("rotary: rotate vs d×d matrix", error, 4 * (position + 4) * 2**-24)


def test_hand_numbers():
    assert torch.allclose(rotary_frequencies(4, 100.0), torch.tensor([1.0, 0.1]))
    quarter = torch.tensor([[1.0, 0.0]])
    assert torch.allclose(turn(quarter, 1), torch.tensor([[0.5403023, 0.8414710]]))  # cos 1, sin 1


@settings(deadline=None)  # the first call may compile C
@given(m=positions, n=positions, shift=st.integers(0, 500))
def test_scores_depend_on_distance_only(m, n, shift):
    q, k = random(1, 16, seed=1), random(1, 16, seed=2)
    near = (turn(q, m) * turn(k, n)).sum()
    far = (turn(q, m + shift) * turn(k, n + shift)).sum()
    assert torch.allclose(near, far, atol=16 * 9 * 2600 * 2**-24)  # 16 products below 9, angles up to 2548 rad


@settings(deadline=None)  # the first call may compile C
@given(m=st.integers(0, 1000), n=st.integers(0, 1000))
def test_rotations_compose_and_keep_length(m, n):
    x = random(1, 16, seed=3)
    assert torch.allclose(turn(turn(x, m), n), turn(x, m + n), atol=4 * 2000 * 2**-23)
    assert torch.allclose(turn(x, m).norm(), x.norm(), rtol=1e-6)


def test_position_zero_is_the_identity():
    assert torch.equal(turn(random(3, 8), 0, 0, 0), random(3, 8))


def test_half_rotated_layout_agrees_after_the_row_permutation():
    """Hugging Face's rotate_half on permuted rows is the interleaved rotation, permuted."""
    heads, head_dim, position = 2, 8, 11
    x = random(heads * head_dim)
    order = hf_row_order(heads, head_dim)
    angles = position * rotary_frequencies(head_dim, THETA).repeat(2)
    hf = x[order].view(heads, head_dim)
    half_rotated = torch.cat((-hf[:, head_dim // 2 :], hf[:, : head_dim // 2]), dim=-1)
    expected = hf * angles.cos() + half_rotated * angles.sin()
    own = torch.cat([turn(head[None], position)[0] for head in x.view(heads, head_dim)])
    assert torch.allclose(own[order].view(heads, head_dim), expected, atol=1e-6)


def test_row_order_is_a_permutation_within_heads():
    order = hf_row_order(3, 6)
    assert order.sort().values.tolist() == list(range(18))
    assert torch.equal(order.view(3, 6) // 6, torch.arange(3)[:, None].expand(3, 6))


def test_explicit_positions_per_row():
    x = random(2, 3, 4, 8)
    table = rotary_table(torch.tensor([[0, 1, 2], [5, 5, 0]]), 8, THETA)
    rotated = rotate(x, *table)
    for b, row in enumerate([[0, 1, 2], [5, 5, 0]]):
        for t, position in enumerate(row):
            expected = rotate(x[b : b + 1, t : t + 1], *rotary_table(torch.tensor([position]), 8, THETA))
            assert torch.equal(rotated[b, t], expected[0, 0])


def test_angles_stay_float32_for_bf16_inputs():
    x = random(1, 1, 1, 8).bfloat16()
    rotated = rotate(x, *rotary_table(torch.tensor([2047]), 8, THETA))
    expected = rotate(x.float(), *rotary_table(torch.tensor([2047]), 8, THETA))
    assert rotated.dtype == torch.bfloat16
    assert torch.equal(rotated, expected.bfloat16())


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gradient_is_turned_back_and_nothing_kept_for_it(dtype, compiler, monkeypatch):
    if not compiler:
        monkeypatch.setattr(elementwise, "_library", lambda: None)
    x, dy = (random(2, 5, 3, 8, seed=seed).to(dtype) for seed in range(2))
    table, kept = rotary_table(torch.tensor([3, 0, 500, 2, 9]), 8, THETA), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        rotated = rotate(x.requires_grad_(), *table)
    rotated.backward(dy)
    assert list(map(id, kept)) == list(map(id, table))
    (expected,) = torch.autograd.grad(rotate_plain(x, *table), x, dy)
    assert torch.equal(rotated, rotate_plain(x, *table)) and torch.equal(x.grad, expected)


def test_it_can_be_traced():
    x, table = random(2, 3, 4, 8), rotary_table(torch.arange(3), 8, THETA)
    assert torch.allclose(torch.compile(rotate, backend="eager", fullgraph=True)(x, *table), rotate(x, *table))
