"""The first product of a low-rank update: its gradients by hand, and dropout that keeps no mask."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import lora.update
from lora.update import compress


def draw(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 24, generator=generator).to(dtype).requires_grad_()
    return x, torch.randn(4, 24, generator=generator, dtype=torch.promote_types(dtype, torch.float32)).requires_grad_()


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradients_are_those_of_the_formula(p):
    """float64 goes by PyTorch's operators; the formula is differentiated by autograd with the very same mask."""
    x, lora_A = draw(torch.float64)
    torch.manual_seed(3)
    mask = compress(torch.ones_like(x), torch.eye(24, dtype=torch.float64), 1.0, p).detach()
    torch.manual_seed(3)
    y = compress(x, lora_A, 2.5, p)
    expected = 2.5 * (x * mask) @ lora_A.t()
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(
        torch.autograd.grad(y, (x, lora_A), weights), torch.autograd.grad(expected, (x, lora_A), weights), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backward_pass_finds_the_same_mask(dtype, check_bound):
    """With A of ones, dx is the mask times a row's sum: zero exactly where x was dropped."""
    x, _ = draw(dtype)
    identity = torch.eye(24, requires_grad=True)
    y = compress(x, identity, 1.0, 0.4)
    y.sum().backward()
    assert x.grad is not None and identity.grad is not None
    assert torch.equal(x.grad == 0, y == 0) and 0.3 < (y == 0).float().mean() < 0.5
    expected = y.detach().double().flatten(0, 1).sum(0)  # dA_ij = Σ dc_i D(x)_j, all dc = 1
    error = ((identity.grad.double() - expected).abs() / y.double().abs().flatten(0, 1).sum(0)).max().item()
    # 15 terms summed in float32, rounded to the dtype once
    check_bound(f"lora: dA with dropout, {dtype}", error, torch.finfo(dtype).eps / 2 + 15 * 2.0**-24)


def test_nothing_but_the_input_is_kept():
    x, lora_A = draw(torch.float32)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        compress(x, lora_A, 1.0, 0.4)
    assert {tensor.data_ptr() for tensor in kept} == {x.data_ptr(), lora_A.data_ptr()}


@pytest.mark.parametrize("without_c", [False, True])
def test_checkpointing_draws_the_same_mask_again(without_c, monkeypatch):
    if without_c:
        monkeypatch.setattr(lora.update, "drop", lambda *_: None)
    gradients = []
    for recomputed in (False, True):
        x, lora_A = draw(torch.float32)
        torch.manual_seed(5)
        y = (
            checkpoint(compress, x, lora_A, 1.0, 0.4, use_reentrant=False)
            if recomputed
            else compress(x, lora_A, 1.0, 0.4)
        )
        y.square().sum().backward()
        gradients.append((x.grad, lora_A.grad))
    assert torch.equal(gradients[0][0], gradients[1][0]) and torch.equal(gradients[0][1], gradients[1][1])


def test_a_run_s_seed_decides_and_nothing_is_drawn_without_dropout():
    x, lora_A = draw(torch.float32)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    compress(x, lora_A, 1.0, 0.0)
    assert torch.equal(torch.get_rng_state(), state)
    first, second = compress(x, lora_A, 1.0, 0.4), compress(x, lora_A, 1.0, 0.4)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(compress(x, lora_A, 1.0, 0.4), first)


@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 3, 4, 24)])
def test_any_number_of_leading_dimensions(shape):
    x, (_, lora_A) = torch.randn(shape, requires_grad=True), draw(torch.float32)
    compress(x, lora_A, 1.0, 0.4).sum().backward()
    assert x.grad is not None and x.grad.shape == shape and lora_A.grad is not None


def test_float16_under_bf16_autocast_has_one_mask():
    """The gradient comes in bfloat16, for which C could make a mask; x's was made without."""
    x = torch.ones(40, 24, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = compress(x, torch.eye(24), 1.0, 0.4)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad == 0, y == 0)
