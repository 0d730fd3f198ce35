import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import lora as oracle
from torch import Tensor, nn

from llama.linear import Linear
from lora import LoraLinear, adapters_disabled, lora_reference, merge_lora, unmerge_lora
from lora.update import compress
from native import RowMatrix, c_backend, row_product

D, K, R, ALPHA, N = 24, 20, 4, 6.0, 5
# Relative rounding error of one operation: half the distance between neighbouring numbers.
UNIT = {dtype: torch.finfo(dtype).eps / 2 for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


def make_layer(dtype: torch.dtype = torch.float32, *, seed: int = 0, bias: bool = False, **options) -> LoraLinear:
    """An adapter whose B is not zero, over a base of the dtype."""
    generator = torch.Generator().manual_seed(seed)
    base = nn.Linear(D, K, bias=bias, dtype=dtype)
    for parameter in base.parameters():
        nn.init.normal_(parameter, generator=generator)
    options = {"r": R, "alpha": ALPHA, "dropout": 0.0} | options
    layer = LoraLinear(base.requires_grad_(False), **options, generator=generator)
    nn.init.normal_(layer.lora_B, generator=generator)
    return layer


def inputs(dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def matrices(layer: LoraLinear) -> list[np.ndarray]:
    return [tensor.detach().double().numpy() for tensor in (layer.base.weight, layer.lora_A, layer.lora_B)]


def error_of(result: Tensor, x: Tensor, layer: LoraLinear) -> float:
    """Largest deviation from the oracle, relative to the sum of the magnitudes of all terms."""
    arguments = (x.double().numpy(), *matrices(layer), layer.scaling)
    difference = np.abs(result.detach().double().numpy() - oracle.lora_forward(*arguments))
    return float((difference / oracle.lora_magnitude(*arguments)).max())


def test_oracle_by_hand() -> None:
    # Ax = 1·3 + 2·1 = 5; h = (3, 1) + 2·(1·5, −1·5)
    result = oracle.lora_forward([[3, 1]], [[1, 0], [0, 1]], [[1, 2]], [[1], [-1]], oracle.scale(4, 2, False))
    assert result.tolist() == [[13, -9]]


@pytest.mark.parametrize("rslora", [False, True])
def test_scaling(rslora: bool) -> None:
    assert make_layer(rslora=rslora).scaling == pytest.approx(oracle.scale(ALPHA, R, rslora), rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reference_agrees_with_the_oracle(dtype: torch.dtype, check_bound: Callable) -> None:
    layer, x = make_layer().to(dtype), inputs(dtype)
    result = lora_reference(x, layer.base.weight, layer.lora_A, layer.lora_B, layer.scaling)
    # A sum of d products, one of r, the scale, and the sum of the two: each term is rounded at most d + r + 4 times.
    check_bound(f"lora: reference vs oracle, {dtype}", error_of(result, x, layer), (D + R + 4) * UNIT[dtype])


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("shape", [(N, D), (1, N, D), (D,)])
def test_layer_agrees_with_the_reference(shape: tuple[int, ...], rslora: bool, check_bound: Callable) -> None:
    layer = make_layer(rslora=rslora, bias=True)
    x = inputs().flatten()[: math.prod(shape)].view(shape)
    expected = lora_reference(x, layer.base.weight, layer.lora_A, layer.lora_B, layer.scaling, layer.base.bias)
    result = layer(x)
    assert result.shape == (*shape[:-1], K)
    magnitude = lora_reference(
        x.abs(), layer.base.weight.abs(), layer.lora_A.abs(), layer.lora_B.abs(), layer.scaling, layer.base.bias.abs()
    )
    error = ((result - expected).abs() / magnitude).max().detach()
    # Both sides sum d + r products in their own order, plus bias and scale.
    check_bound("lora: layer vs reference, float32", error, 2 * (D + R + 5) * UNIT[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layer_agrees_with_the_oracle(dtype: torch.dtype, check_bound: Callable) -> None:
    layer, x = make_layer(dtype), inputs(dtype)
    result = layer(x)
    assert result.dtype == dtype and layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    # float32 rounds in every step of the sums. In 16 bits these run in float32, and the update is rounded six times:
    # A, B, Ax, s·Ax, the product, the sum.
    roundings = D + R + 4 if dtype == torch.float32 else 6
    bound = roundings * UNIT[dtype] * (1 + roundings * UNIT[dtype])
    check_bound(f"lora: layer vs oracle, {dtype}", error_of(result, x, layer), bound)


def test_gradients_agree_with_the_oracle(check_bound: Callable) -> None:
    layer, x = make_layer().double(), inputs(torch.float64).requires_grad_()
    dh = torch.randn(N, K, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    layer(x).backward(dh)
    expected = oracle.lora_gradients(x.detach().numpy(), *matrices(layer), layer.scaling, dh.numpy())
    for name, tensor, gradient in zip("xAB", (x, layer.lora_A, layer.lora_B), expected, strict=True):
        error = np.abs(tensor.grad.numpy() - gradient).max() / np.abs(gradient).max()
        check_bound(f"lora: dL/d{name} vs oracle, float64", error, N * (D + K) * UNIT[torch.float64])
    assert layer.base.weight.grad is None


def test_gradients_agree_with_finite_differences() -> None:
    layer, x = make_layer(bias=True).double(), inputs(torch.float64).requires_grad_()

    def function(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"lora_A": A, "lora_B": B}, (x,))

    assert torch.autograd.gradcheck(function, (x, layer.lora_A, layer.lora_B))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_zero_B_leaves_the_base_as_it_is(dtype: torch.dtype, training: bool) -> None:
    base = nn.Linear(D, K, dtype=dtype)
    layer = LoraLinear(base, r=R, alpha=ALPHA, dropout=0.5).train(training)
    assert torch.equal(layer(inputs(dtype)), base(inputs(dtype)))


@given(alpha=st.floats(0.01, 100), factor=st.floats(0.01, 100), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_output_is_linear_in_alpha(alpha: float, factor: float, seed: int) -> None:
    x = inputs(torch.float64, seed)
    once, many = (make_layer(seed=seed, alpha=value).double() for value in (alpha, alpha * factor))
    base = once.base(x)
    update = once(x) - base
    # float64: the subtraction leaves the rounding of h itself, of the order of 2⁻⁵³ |h|.
    limit = 1e-13 * (1 + factor) * (1 + base.abs().max() + update.abs().max())
    assert ((many(x) - base) - factor * update).abs().max() <= limit


def test_initial_values_are_uniform_and_seeded() -> None:
    base = nn.Linear(400, 10)
    first, again, other = (
        LoraLinear(base, r=50, alpha=1, dropout=0.0, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    A = first.lora_A.detach()
    assert torch.equal(A, again.lora_A) and not torch.equal(A, other.lora_A)
    assert torch.equal(first.lora_B, torch.zeros(10, 50))
    assert A.abs().max() <= 1 / math.sqrt(400)  # U(−1/√d, 1/√d) …
    # … whose variance is 1/(3d). The mean of 20,000 squares of uniform values deviates by 0.9/√20000 = 0.6 % (1 σ).
    assert A.square().mean().item() == pytest.approx(1 / 1200, rel=0.03)


def test_dropout_spares_the_base_and_happens_only_in_training() -> None:
    layer, x = make_layer(dropout=0.5), inputs()
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(layer(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    torch.manual_seed(1)
    mask = compress(torch.ones_like(x), torch.eye(x.shape[-1]), scaling=1.0, p=0.5)  # the same draw: one seed
    update = layer.scaling * (x * mask) @ layer.lora_A.T @ layer.lora_B.T
    # float32 sums of d + r terms of magnitude 10 or so
    assert (draws[2] - layer.base(x) - update).abs().max() <= 1e-4


def test_layer_takes_over_the_mode_of_its_base() -> None:
    assert LoraLinear(nn.Linear(2, 2).eval(), r=1, alpha=1, dropout=0.5).training is False
    assert LoraLinear(nn.Linear(2, 2).train(), r=1, alpha=1, dropout=0.5).training is True


def test_autocast_computes_in_16_bits_and_gradients_stay_float32() -> None:
    layer = make_layer()
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(inputs())
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert layer.lora_A.grad.dtype == layer.lora_B.grad.dtype == torch.float32


def test_casts_to_16_bits_leave_the_adapter_in_float32() -> None:
    layer = make_layer()
    before = [layer.lora_A.clone(), layer.lora_B.clone()]
    for cast in (lambda: layer.bfloat16(), lambda: layer.to("cpu", torch.float16), lambda: nn.Sequential(layer).half()):
        cast()
        assert layer.base.weight.dtype in (torch.bfloat16, torch.float16)
        assert torch.equal(layer.lora_A, before[0]) and torch.equal(layer.lora_B, before[1])
        assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
        assert layer.lora_A.requires_grad and isinstance(layer.lora_A, nn.Parameter)
    layer.double()
    assert layer.lora_A.dtype == layer.base.weight.dtype == torch.float64
    assert LoraLinear(nn.Linear(2, 2), 1, 1, 0.0).to("meta").lora_A.is_meta


def test_any_linear_like_base_will_do() -> None:
    class Negation(nn.Module):
        in_features = out_features = 3

        def forward(self, x: Tensor) -> Tensor:
            return -x.double()

    layer = LoraLinear(Negation(), r=1, alpha=1, dropout=0.0)
    nn.init.ones_(layer.lora_A), nn.init.ones_(layer.lora_B)
    result = layer(torch.tensor([1.0, 2.0, 3.0]))
    assert result.dtype == torch.float64 and result.tolist() == [5, 4, 3]  # −x + Σx


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (nn.LayerNorm(3), "LayerNorm lacks in_features"),
        (LoraLinear(nn.Linear(2, 2), 1, 1, 0.0), "already a LoraLinear"),
    ],
)
def test_other_bases_are_refused(base: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraLinear(base, r=1, alpha=1, dropout=0.0)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="r = 0"):
        LoraLinear(nn.Linear(2, 2), r=0, alpha=1, dropout=0.0)


def make_row_layer(**options) -> LoraLinear:
    """Over a base that says what it multiplies a row by."""
    layer = make_layer(torch.bfloat16, **options)
    plain, layer.base = layer.base, Linear(D, K).bfloat16()
    layer.base.load_state_dict(plain.state_dict())
    return layer.eval()


@pytest.mark.skipif(c_backend() != "C", reason="install a C compiler")
@pytest.mark.parametrize("rslora", [False, True])
@torch.no_grad()
def test_row_matrix_stands_for_the_layer(rslora: bool, check_bound: Callable) -> None:
    layer, x = make_row_layer(rslora=rslora), inputs(torch.bfloat16)
    matrix = layer.row_matrix()
    assert matrix is not None and matrix.lora_A.dtype == matrix.lora_B.dtype == torch.bfloat16
    rows = torch.stack([row_product(row, matrix) for row in x])
    # The roundings of the layer itself, in the same places: six, see above.
    unit = UNIT[torch.bfloat16]
    check_bound("lora: row product vs oracle, bfloat16", error_of(rows, x, layer), 6 * unit * (1 + 6 * unit))
    magnitude = oracle.lora_magnitude(x.double().numpy(), *matrices(layer), layer.scaling)
    for name, result in (("many rows", layer(x)), ("one row", torch.stack([layer(row) for row in x]))):
        # Float32 sums in another order may round any of the four results to the neighbour: one place, two units each.
        error = (np.abs((rows - result).double().numpy()) / magnitude).max()
        check_bound(f"lora: row product vs layer, {name}", error, 4 * 2 * unit)


def test_row_matrix_leaves_a_disabled_or_merged_adapter_out() -> None:
    layer = make_row_layer()
    model = nn.Sequential(layer)

    def has_adapter() -> bool:
        return layer.row_matrix().lora_A is not None

    assert has_adapter()
    with adapters_disabled(model):
        assert not has_adapter()
    merge_lora(model)
    assert not has_adapter() and layer.row_matrix().weight.data_ptr() == layer.base.weight.data_ptr()
    unmerge_lora(model)
    assert has_adapter()


def test_no_row_matrix_without_the_base_s_or_with_dropout() -> None:
    assert make_layer(torch.bfloat16).row_matrix() is None  # nn.Linear has none
    layer = make_row_layer(dropout=0.5)
    assert isinstance(layer.row_matrix(), RowMatrix)
    assert layer.train().row_matrix() is None
    assert isinstance(make_row_layer().train().row_matrix(), RowMatrix)
