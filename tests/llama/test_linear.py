"""A linear layer that is nn.Linear to everybody, and has a product of its own for single rows."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llama.linear import Linear
from native import c_backend, rows

Check = Callable[[str, float, float], None]

BF16 = 2.0**-8  # half the distance between neighbouring numbers, relative


def make(dtype: torch.dtype = torch.bfloat16) -> Linear:
    torch.manual_seed(0)
    return Linear(40, 12).to(dtype)


def inputs(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_it_is_a_linear_layer_without_bias() -> None:
    layer = make()
    assert isinstance(layer, nn.Linear) and layer.bias is None
    assert list(layer.state_dict()) == ["weight"] and layer.weight.shape == (12, 40)
    torch.manual_seed(0)
    assert torch.equal(layer.weight, nn.Linear(40, 12, bias=False).bfloat16().weight)  # drawn the same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 40), (1, 3, 40), (0, 40)])
@torch.no_grad()
def test_many_rows_are_nn_linear_s(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer, x = make(dtype), inputs(*shape, dtype=dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight))


def test_gradients_are_nn_linear_s() -> None:
    layer, x = make(), inputs(1, 40).requires_grad_()
    expected = torch.autograd.grad(F.linear(x, layer.weight).sum(), [x, layer.weight])
    layer(x).sum().backward()
    assert torch.equal(x.grad, expected[0]) and torch.equal(layer.weight.grad, expected[1])


@pytest.mark.skipif(c_backend() != "C", reason="install a C compiler")
@pytest.mark.parametrize("shape", [(40,), (1, 40), (1, 1, 40)])
@torch.no_grad()
def test_a_single_row_takes_the_product_of_its_own(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, check_bound: Check
) -> None:
    layer, x = make(), inputs(*shape)
    exact, mass = (F.linear(t.double(), w.double()) for t, w in ((x, layer.weight), (x.abs(), layer.weight.abs())))
    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", None)  # not nn.Linear's
        y = layer(x)
    assert y.dtype == torch.bfloat16 and y.shape == (*shape[:-1], 12)
    # One rounding to bfloat16, and those of 40 sums in float32.
    bound = BF16 * exact.abs() + 41 * 2.0**-24 * mass
    check_bound("Linear: one bfloat16 row vs float64, of its bound", ((y - exact).abs() / bound).max(), 1)


@torch.no_grad()
def test_other_single_rows_are_nn_linear_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.float16):
        layer, x = make(dtype), inputs(1, 40, dtype=dtype)
        assert torch.equal(layer(x), F.linear(x, layer.weight))
    layer, x = make(torch.float32), inputs(1, 40, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), F.linear(x, layer.weight))
    monkeypatch.setattr(rows, "_library", lambda: None)
    layer, x = make(), inputs(1, 40)
    assert torch.equal(layer(x), F.linear(x, layer.weight))


def test_a_row_of_another_length_is_refused() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes"):
        make()(inputs(1, 39))
