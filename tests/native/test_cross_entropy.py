"""Cross entropy and its gradient in C: against float64, at the edges of float32, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

import native.cross_entropy
from native.cross_entropy import cross_entropy_

DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.skipif(native.cross_entropy._library() is None, reason="install a C compiler")


def drawn(n: int, vocabulary: int, dtype: torch.dtype, *, std: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + vocabulary)
    logits = torch.randn(n, vocabulary, generator=generator) * std
    return logits.to(dtype), torch.randint(vocabulary, (n,), generator=generator)


def worst(errors: torch.Tensor) -> float:
    return errors.abs().max().item() if errors.numel() else 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "vocabulary"), [(5, 32_000), (64, 97), (3, 1), (0, 7)])
def test_against_float64(n, vocabulary, dtype, check_bound):
    logits, targets = drawn(n, vocabulary, dtype)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    (0.3 * expected).sum().backward()
    losses = cross_entropy_(logits, targets, 0.3)
    assert losses is not None and losses.dtype == torch.float32
    # An exponential within 2^-22, a sum of V of them, a logarithm; the loss itself may be near 0.
    check_bound("cross entropy in C: loss vs float64", worst((losses - expected) / expected.clamp(min=1)), 1e-6)
    size = exact.detach().softmax(-1) + F.one_hot(targets, vocabulary)  # of what is subtracted from what
    rounding = torch.finfo(torch.bfloat16).eps / 2 if dtype == torch.bfloat16 else 0
    error = worst((logits - exact.grad) / (0.3 * size))
    # z − max is down to −36, where float32 rounds by 2e-6: what is absolute before exp is relative after it.
    check_bound(f"cross entropy in C: gradient vs float64, {dtype}", error, 3e-6 + rounding)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_scale_the_logits_stay(dtype):
    logits, targets = drawn(6, 500, dtype)
    before = logits.clone()
    losses = cross_entropy_(logits, targets, None)
    assert torch.equal(logits, before)
    assert torch.equal(losses, cross_entropy_(logits, targets, 1.0))


def test_far_from_zero_nothing_is_lost():
    """exp(1000) is infinite, and of 1000.7 float32 keeps four decimals; of the difference, all."""
    losses = cross_entropy_(torch.tensor([[1000.0, 1000.0], [-1000.0, -1001.0]]), torch.tensor([1, 0]), None)
    expected = [math.log(2), math.log1p(math.exp(-1))]
    assert torch.allclose(losses, torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_row_alone(poison):
    logits, targets = drawn(3, 40, torch.float32)
    logits[1, 17] = poison
    losses = cross_entropy_(logits, targets, 1.0)
    assert losses.isfinite().tolist() == [True, False, True]
    assert logits.isfinite().all(-1).tolist() == [True, False, True]


def test_an_impossible_token_has_no_probability():
    logits = torch.tensor([[0.0, -math.inf, 0.0], [0.0, -math.inf, 0.0]])
    losses = cross_entropy_(logits, torch.tensor([0, 1]), 1.0)
    assert math.isclose(losses[0].item(), math.log(2), rel_tol=1e-6) and losses[1] == math.inf
    assert logits[0, 1].abs() < 1e-30  # exp is cut off at e^-87


@pytest.mark.parametrize("targets", [[0, 7], [-1, 2], [1], [1, 2, 3], [1.0, 2.0]])
def test_targets_are_checked_before_c_sees_them(targets):
    with pytest.raises(ValueError, match="targets"):
        cross_entropy_(torch.zeros(2, 7), torch.tensor(targets), 1.0)


def test_not_for_other_dtypes_and_layouts():
    targets = torch.tensor([0, 1, 2])
    for logits in (torch.zeros(3, 4, dtype=torch.float16), torch.zeros(4, 3).t(), torch.zeros(3, 4, device="meta")):
        assert cross_entropy_(logits, targets, 1.0) is None


def test_autograd_hears_of_the_write():
    """A head that keeps its output for its own backward pass must not silently read the gradient there."""
    z = torch.zeros(2, 3, requires_grad=True)
    logits = z.exp()  # keeps its output
    cross_entropy_(logits.detach(), torch.tensor([0, 1]), 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(logits, z, torch.ones(2, 3))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_does_not_matter(threads):
    before = torch.get_num_threads()
    (logits, targets), (again, _) = drawn(9, 300, torch.bfloat16), drawn(9, 300, torch.bfloat16)
    expected = cross_entropy_(logits, targets, 1.0)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(cross_entropy_(again, targets, 1.0), expected) and torch.equal(again, logits)
    finally:
        torch.set_num_threads(before)
