"""What stands between a block's products, in float32: against the papers' formulas in float64."""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import llama as oracle
from torch import Tensor

from native import c_backend, rows

Check = Callable[[str, float, float], None]

pytestmark = pytest.mark.skipif(c_backend() != "C", reason="install a C compiler")

FLOAT32 = 2.0**-24


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def call(name: str, *arguments: Tensor | int | float) -> None:
    """A C function of block.h's, by pointers to tensors, 64-bit sizes and floats; the last argument is an int."""
    kinds = {int: ctypes.c_int64, float: ctypes.c_float}
    plain = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else kinds[type(a)](a) for a in arguments]
    function = getattr(rows._library(), name)
    function.restype = None
    function(*plain)


def attend(q: Tensor, keys: Tensor, values: Tensor, length: int, threads: int = 1) -> Tensor:
    """Shapes: q (H, D), keys and values (G, S, D), of which the first `length` -> (H, D)."""
    (heads, size), (groups, capacity, _) = q.shape, keys.shape
    y = torch.full_like(q, torch.nan)
    call("attend", q, keys, values, y, heads, groups, length, size, capacity * size, 0, threads)
    return y


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 33, 512])
@pytest.mark.parametrize(("heads", "groups", "size"), [(4, 4, 8), (6, 2, 16), (8, 1, 20), (1, 1, 2)])
def test_attention(heads: int, groups: int, size: int, length: int, threads: int, check_bound: Check) -> None:
    """For 8 heads of 20 numbers the longest context is shared out among threads."""
    q, keys, values = (randn(*s, seed=i) for i, s in enumerate([(heads, size), *2 * [(groups, length + 3, size)]]))
    expected = oracle.attention(
        q.double().numpy()[:, None],
        *(tensor[:, :length].double().numpy() for tensor in (keys, values)),
        np.ones((1, length), dtype=bool),
    )[:, 0]
    error = np.abs(attend(q, keys, values, length, threads).numpy() - expected).max()
    # Scores of order 4 carry a relative error of a few 2^-24, which e^score multiplies by the score; so do the sums.
    check_bound("one token: attention vs float64", error, 1e-6)


def test_exponential_over_its_range(check_bound: Check) -> None:
    """Two keys with scores 0 and −d and values 0 and 1: the answer is e^−d / (1 + e^−d)."""
    distances = torch.cat((torch.linspace(0, 86.5, 1731), torch.tensor([1e-8, 0.34657, 0.34658, 1.0397])))
    for d in distances:
        keys, values = torch.tensor([[[0.0], [-d]]]), torch.tensor([[[0.0], [1.0]]])
        y = attend(torch.ones(1, 1), keys, values, 2).double().item()
        exact = np.exp(-d.double().item())
        # 2^-22 for the exponential; the sum, the quotient and float32's own rounding of e^−d·2^n take a unit each.
        check_bound("one token: e^x, relative", abs(y / (exact / (1 + exact)) - 1), 2.0**-22 + 3 * FLOAT32)


def test_scores_far_apart_and_not_finite() -> None:
    values = torch.tensor([[[0.0], [1.0]]])
    for far in (100.0, 1e30):
        y = attend(torch.ones(1, 1), torch.tensor([[[0.0], [-far]]]), values, 2).item()
        assert 0 <= y < 2e-38  # e^−87 is the least
        assert attend(torch.ones(1, 1), torch.tensor([[[0.0], [far]]]), values, 2).item() == 1
    for keys in ([[[0.0], [torch.nan]]], [[[torch.nan], [0.0]]], [[[torch.inf], [0.0]]]):
        assert attend(torch.ones(1, 1), torch.tensor(keys), values, 2).isnan().all()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("size", [1, 31, 4096])
def test_norm(size: int, scale: float, check_bound: Check) -> None:
    x, gain, y = scale * randn(size, seed=0), randn(size, seed=1), torch.empty(size)
    call("normalise", x, gain, y, size, 1e-6, 0)
    expected = oracle.rms_norm(x.numpy(), gain.numpy(), np.float32(1e-6))
    error = np.abs(y.numpy() - expected) / np.abs(expected)
    # A sum of n squares, under a root: half its n + 1 roundings; mean, ε, root, quotient and two products.
    check_bound("one token: norm vs float64, relative", error.max(), 1.01 * (size / 2 + 6) * FLOAT32)


def test_norm_of_zeros_is_zero() -> None:
    y = torch.full((8,), torch.nan)
    call("normalise", torch.zeros(8), torch.ones(8), y, 8, 1e-6, 0)
    assert torch.equal(y, torch.zeros(8))


@pytest.mark.parametrize("position", [0, 1, 2047])
def test_rotation(position: int, check_bound: Check) -> None:
    heads, size = 3, 10
    x = randn(heads, size, seed=0)
    angles = position * 10_000.0 ** (-np.arange(0, size, 2) / size)
    cosine, sine = (torch.from_numpy(table(angles)).float() for table in (np.cos, np.sin))
    turned = x.clone()
    call("rotate", turned, cosine, sine, heads, size // 2, 0)
    expected = x.double().numpy() @ oracle.rotary_matrix(position, size, 10_000.0).T
    # Two products and a sum, and the tables: four roundings of |even| + |odd| at most.
    bound = 4 * FLOAT32 * 2 * x.abs().max()
    check_bound("one token: rotation vs float64", np.abs(turned.numpy() - expected).max(), bound)


def test_bfloat16_is_the_same_rounded() -> None:
    """Read as bfloat16 and computed as float32; rounded once, the norm before its gain as well."""
    q, keys, values, gain = (randn(*shape, seed=i) for i, shape in enumerate([(4, 8), (2, 9, 8), (2, 9, 8), (8,)]))
    keys, values, gain = keys.bfloat16(), values.bfloat16(), gain.bfloat16()
    y = torch.full_like(q, torch.nan)
    call("attend", q, keys, values, y, 4, 2, 9, 8, 9 * 8, 1, 1)
    assert torch.equal(y, attend(q, keys.float(), values.float(), 9).bfloat16().float())

    x, norm, float32_norm = q[0], torch.empty(8), torch.empty(8)
    call("normalise", x, gain, norm, 8, 1e-6, 1)
    call("normalise", x, torch.ones(8), float32_norm, 8, 1e-6, 0)
    assert torch.equal(norm, (float32_norm.bfloat16() * gain).float())

    cosine, sine = torch.tensor([0.6, 0.8, 1.0, 0.0]), torch.tensor([0.8, 0.6, 0.0, 1.0])
    turned, float32_turned = q.clone(), q.clone()
    call("rotate", turned, cosine, sine, 4, 4, 1)
    call("rotate", float32_turned, cosine, sine, 4, 4, 0)
    assert torch.equal(turned, float32_turned.bfloat16().float())
