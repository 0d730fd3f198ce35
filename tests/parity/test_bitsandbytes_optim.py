"""bitsandbytes' quantizer and 8-bit AdamW: the same map, the same codes, the same step.

Its CPU kernel finds codes through a table of 65,536 equal bins over [−1, 1]: within half a bin (1.5e-5) of a boundary
its code need not be the nearest, and what is below half a bin is lost to 0. For a dtype without a kernel its operator
searches exactly: float64 takes that way, and there the codes must be equal.
"""

import pytest
import torch
from torch import Tensor, nn

from optim8bit import AdamW8bit, dequantize_blockwise, dynamic_map, quantize_blockwise
from optim8bit.dynamic_map import code_boundaries

bnb = pytest.importorskip("bitsandbytes", reason="install the extra: parity")
F = pytest.importorskip("bitsandbytes.functional", reason="install the extra: parity")

HALF_BIN = 1 / 65535


def sample(signed: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
    return (x if signed else x.square()).to(dtype)


def theirs(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    codes, state = F.quantize_blockwise(x, code=F.create_dynamic_map(signed), blocksize=256)
    return codes, state.absmax.flatten()


def their_search(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    return torch.ops.bitsandbytes.quantize_blockwise(x.double(), F.create_dynamic_map(signed), 256)


def to_boundary(x: Tensor, absmax: Tensor, different: Tensor, signed: bool) -> Tensor:
    """How far the normalised values whose codes differ lie from the nearest boundary between two codes."""
    unit = (x.float() / absmax[:, None])[different].abs()
    return (unit[:, None] - code_boundaries(signed)).abs().amin(1)


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_equal(signed: bool) -> None:
    assert torch.equal(dynamic_map(signed), F.create_dynamic_map(signed))


@pytest.mark.parametrize("signed", [True, False])
def test_codes_equal_their_exact_search_where_the_scale_is_a_power_of_two(signed: bool) -> None:
    """They multiply by 1/absmax, we divide: with such a scale there is no rounding in either."""
    x = sample(signed).clamp(-3.9, 3.9)
    x[:, 7] = 4.0
    codes, absmax = quantize_blockwise(x, signed=signed)
    peer_codes, peer_absmax = their_search(x, signed)
    assert torch.equal(absmax, peer_absmax)
    assert torch.equal(codes, peer_codes)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_equal_their_exact_search_but_for_the_last_bit_of_the_quotient(signed: bool, check_bound) -> None:
    x = sample(signed)
    codes, absmax = quantize_blockwise(x, signed=signed)
    peer_codes, peer_absmax = their_search(x, signed)
    assert torch.equal(absmax, peer_absmax)
    different = codes != peer_codes
    check_bound("8-bit codes vs bitsandbytes' search: share that differs", different.float().mean(), 1e-4)
    # Their 1/absmax and the product round to 2⁻²⁴ each, our quotient once, of numbers up to 1.
    assert (to_boundary(x, absmax, different, signed) <= 3 * 2**-24).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_equal_their_kernel_but_within_half_a_bin_of_a_boundary(signed: bool, dtype: torch.dtype) -> None:
    x = sample(signed, dtype)
    codes, absmax = quantize_blockwise(x, signed=signed)
    peer_codes, peer_absmax = theirs(x, signed)
    assert torch.equal(absmax, peer_absmax)
    different = codes != peer_codes
    assert different.float().mean() < (0.01 if signed else 0.05)  # so many values lie that close to a boundary, or to 0
    assert (to_boundary(x, absmax, different, signed) <= HALF_BIN + 3 * 2**-24).all()
    values, unit = dynamic_map(signed), x.float() / absmax[:, None]
    ours_off, theirs_off = ((values[c.long()] - unit).abs()[different] for c in (codes, peer_codes))
    assert (ours_off <= theirs_off).all()


@pytest.mark.parametrize("signed", [True, False])
def test_values_are_equal(signed: bool) -> None:
    codes, absmax = quantize_blockwise(sample(signed), signed=signed)
    peer = F.dequantize_blockwise(codes, absmax=absmax, code=F.create_dynamic_map(signed), blocksize=256)
    assert torch.equal(dequantize_blockwise(codes, absmax, signed=signed), peer)


def test_one_step_of_the_optimizer(check_bound) -> None:
    start = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(2)) * 0.01
    ours, peers = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours.grad, peers.grad = grad, grad.clone()
    first = AdamW8bit([ours], lr=1e-3, weight_decay=0.1)
    second = bnb.optim.AdamW8bit([peers], lr=1e-3, weight_decay=0.1, min_8bit_size=4096)
    first.step()
    second.step()
    difference = (ours - peers).detach().abs().max()
    check_bound("AdamW8bit vs bitsandbytes, one step: parameters", difference, 2**-21)  # an ulp of |p| < 8
    state, peer_state = first.state[ours], second.state[peers]
    for name, number, signed in (("exp_avg", 1, True), ("exp_avg_sq", 2, False)):
        absmax, peer_absmax = state[f"{name}_absmax"], peer_state[f"absmax{number}"]
        check_bound(
            "AdamW8bit vs bitsandbytes, one step: absmax, relative", (absmax / peer_absmax - 1).abs().max(), 2**-22
        )
        codes, peer_codes = state[f"{name}_codes"], peer_state[f"state{number}"]
        assert peer_codes.dtype == torch.uint8  # it is 8-bit state that is compared
        moment = 0.1 * grad if signed else 0.001 * grad.square()
        different = codes != peer_codes
        assert different.float().mean() < 0.05
        distance = to_boundary(moment, absmax, different, signed)
        check_bound(
            "AdamW8bit vs bitsandbytes, one step: codes differ near boundaries", distance.max(), HALF_BIN + 2**-21
        )


def test_three_steps_of_the_optimizer(check_bound) -> None:
    start = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    ours, peers = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    first, second = AdamW8bit([ours], lr=1e-3), bnb.optim.AdamW8bit([peers], lr=1e-3, min_8bit_size=4096)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        ours.grad = torch.randn(64, 256, generator=generator) * 0.01
        peers.grad = ours.grad.clone()
        first.step()
        second.step()
    error = (ours - peers).detach().abs()
    # Half of the elements never were near a boundary; a few of theirs have lost v to 0, which no bound would cover.
    check_bound("AdamW8bit vs bitsandbytes, three steps: parameters, median", error.median(), 2**-22)
    check_bound(
        "AdamW8bit vs bitsandbytes, three steps: parameters, 99th percentile", error.flatten().quantile(0.99), 1e-5
    )
