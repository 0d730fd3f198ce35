"""RMSNorm, SwiGLU's product and the rotation in C: against PyTorch's operators, and gradients against float64."""

import pytest
import torch
from torch import Tensor

from llama.norm import rms_norm_plain, rms_norm_reference
from llama.rotary import rotary_table, rotate_plain
from llama.swiglu import silu_product_plain
from native import elementwise

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(2, 20, 1024), (7, 33), (1, 1), (300, 257), (64,)]
EPS = 1e-5

pytestmark = pytest.mark.skipif(elementwise._library() is None, reason="install a C compiler")


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def float64_gradients(function, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    wide = [x.detach().double().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*wide), wide, dy.double())


def relative(mine: Tensor, expected: Tensor) -> float:
    """The largest error of an element relative to itself, or to 2⁻¹⁰ of the largest where it is smaller than that."""
    mine, expected = mine.double(), expected.double()
    return ((mine - expected).abs() / expected.abs().clamp(min=expected.abs().max() * 2**-10)).max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norm(check_bound, shape, dtype):
    a, gain = drawn(*shape, dtype=dtype), drawn(shape[-1], dtype=dtype, seed=1)
    mine, expected = elementwise.rms_norm(a, gain, EPS), rms_norm_plain(a, gain, EPS)
    assert mine is not None
    # 1/RMS is summed in another order. In float32 that is some roundings of it; in bf16 it takes a quotient over a
    # border between two numbers now and then, which can take the product over another one.
    error = 8 * torch.finfo(dtype).eps if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    check_bound(f"rmsnorm: C vs operators, {dtype}", relative(mine, expected), error)
    if dtype == torch.bfloat16:
        assert (mine != expected).double().mean() < 0.002


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_backward(check_bound, shape, dtype):
    a, gain, dy = (drawn(*s, dtype=dtype, seed=i) for i, s in enumerate((shape, shape[-1:], shape)))
    da, dgain = elementwise.rms_norm_backward(dy, a, gain, EPS, train_gain=True)
    expected, expected_gain = float64_gradients(lambda a, g: rms_norm_reference(a, g, EPS), dy, a, gain)
    unit = torch.finfo(dtype).eps / 2
    rounding = unit + 8 * torch.finfo(torch.float32).eps  # once to dtype, after float32 sums along a row
    scale = (dy * gain).double().norm(dim=-1, keepdim=True) / a.double().norm(dim=-1, keepdim=True)  # both terms' size
    error = ((da.double() - expected).abs() / (expected.abs() + scale * shape[-1] ** 0.5)).max().item()
    check_bound(f"rmsnorm: da in C vs float64, {dtype}", error, rounding)
    # The quotient is rounded before it meets the gain; then come float32 sums
    # (of random signs: some roundings for 300 rows), and the result is rounded.
    products = (dy.double() * rms_norm_reference(a.double(), torch.ones_like(gain).double(), EPS)).abs()
    bound = (unit + 4 * torch.finfo(torch.float32).eps) * products.sum_to_size(gain.shape) + unit * expected_gain.abs()
    error = ((dgain.double() - expected_gain).abs() / bound).max().item()
    check_bound(f"rmsnorm: dg in C, error per bound, {dtype}", error, 1.0)
    frozen, none = elementwise.rms_norm_backward(dy, a, gain, EPS, train_gain=False)
    assert torch.equal(frozen, da) and none is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_silu_product(check_bound, shape, dtype):
    gate, up = 4 * drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype, seed=1)
    mine, expected = elementwise.silu_product(gate, up), silu_product_plain(gate, up)
    # Both exponentials are within 2⁻²² of the true one, and three float32 roundings follow. In bf16 that can take the
    # SiLU over a border between two numbers, and then the product over another.
    bound = 2**-21 + 3 * 2**-23 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    check_bound(f"silu product: C vs operators, {dtype}", relative(mine, expected), bound)
    if dtype == torch.bfloat16:
        assert (mine != expected).double().mean() < 0.002


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_silu_product_backward(check_bound, shape, dtype):
    gate, up, dy = (drawn(*shape, dtype=dtype, seed=seed) for seed in range(3))
    (dz, du), unit = elementwise.silu_product_backward(dy, gate, up), torch.finfo(dtype).eps / 2
    expected_z, expected_u = float64_gradients(silu_product_plain, dy, gate, up)
    # Float32 arithmetic with an exponential within 2⁻²², and one rounding to dtype; the SiLU has been rounded before.
    # The terms of SiLU' are of order 1 + |z|, and can cancel.
    terms = (dy * up).double().abs() * (1 + gate.double().abs())
    error = ((dz.double() - expected_z).abs() / (unit * expected_z.abs() + 2**-21 * terms)).max().item()
    check_bound(f"silu product: dz in C, error per bound, {dtype}", error, 1.0)
    error = ((du.double() - expected_u).abs() / expected_u.abs()).max().item()
    check_bound(f"silu product: du in C vs float64, {dtype}", error, 2 * unit + unit**2 + 2**-21)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_of_what_is_large_or_not_finite(dtype):
    gate = torch.tensor([0.0, -0.0, 100.0, -100.0, torch.inf, -torch.inf, torch.nan, 1e-30] * 8, dtype=dtype)
    up = torch.ones_like(gate)
    mine, expected = elementwise.silu_product(gate, up), silu_product_plain(gate, up)
    torch.testing.assert_close(mine, expected, equal_nan=True, rtol=2**-21, atol=1e-36)
    dgate, _ = elementwise.silu_product_backward(up, gate, up)
    assert dgate[:4].tolist() == [0.5, 0.5, 1.0, 0.0]
    assert dgate[6].isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("positions", [torch.arange(5), torch.arange(10).view(2, 5) * 37])
def test_rotation_is_the_same_in_every_bit(positions, sign, dtype):
    for heads, size in ((4, 64), (3, 10), (32, 128)):
        x = drawn(2, 5, heads, size, dtype=dtype)
        cos, sin = rotary_table(positions, size, 10_000.0)
        assert torch.equal(elementwise.rotate_pairs(x, cos, sin, sign), rotate_plain(x, cos, sign * sin))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(dtype):
    a, b, c = (drawn(40, 30, dtype=dtype, seed=seed).t() for seed in range(3))
    gain = drawn(80, dtype=dtype)[::2]
    assert torch.equal(elementwise.rms_norm(a, gain, EPS), elementwise.rms_norm(a.contiguous(), gain.contiguous(), EPS))
    calls = [
        lambda a, b, c: elementwise.rms_norm_backward(a, b, gain, EPS, train_gain=True),
        lambda a, b, c: (elementwise.silu_product(a, b),),
        elementwise.silu_product_backward,
        lambda a, b, c: (elementwise.rotate_pairs(a.unflatten(0, (6, 5)), *rotary_table(torch.arange(6), 40, 1e4), 1),),
    ]
    for call in calls:
        for mine, expected in zip(call(a, b, c), call(*(x.contiguous() for x in (a, b, c))), strict=True):
            assert mine.is_contiguous() and torch.equal(mine, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_matter(dtype):
    a, b, c = (drawn(70, 1000, dtype=dtype, seed=seed) for seed in range(3))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            norm = elementwise.rms_norm_backward(a, b, c[0], EPS, train_gain=True)
            results.append([elementwise.rms_norm(a, c[0], EPS), *norm, *elementwise.silu_product_backward(a, b, c)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


def test_where_c_does_not_apply(monkeypatch):
    x, cos, sin = torch.ones(2, 4, 8), torch.ones(2, 1, 4), torch.ones(2, 1, 4)
    assert elementwise.rms_norm(x, torch.ones(8), EPS) is not None
    assert elementwise.rotate_pairs(x, cos, sin, 1) is not None
    for other in (x.half(), x.double(), x.to("meta"), x[:0]):
        assert elementwise.rms_norm(other, other.new_ones(8), EPS) is None
        assert elementwise.silu_product(other, other) is None
        assert elementwise.rotate_pairs(other, cos, sin, 1) is None
    assert elementwise.rms_norm(x.bfloat16(), torch.ones(8), EPS) is None  # mixed dtypes
    assert elementwise.rms_norm(x, torch.ones(1), EPS) is None  # broadcast
    assert elementwise.silu_product(x, x[:1]) is None
    for table in (cos.double(), cos[:1], cos[..., :1], cos.expand(2, 4, 4)):
        assert elementwise.rotate_pairs(x, table, table, 1) is None
    monkeypatch.setattr(elementwise, "is_compiling", lambda: True)
    assert elementwise.rms_norm(x, torch.ones(8), EPS) is None
