"""Int8Linear: a frozen layer whose weight nothing changes, that saves, loads, moves and trains what is around it."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from int8 import Int8Linear, int8_matmul, linear, quantize_rowwise
from native import c_backend, rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(in_features=40, out_features=12, *, bias=False, dtype=torch.float32, seed=0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(in_features, out_features, bias=bias).to(dtype)


def activations(*shape: int, outliers: int = 2) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    x[..., :outliers] *= 20
    return x


def buffers(layer: Int8Linear) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers()}


def assert_unchanged(layer: Int8Linear, before: dict[str, Tensor]) -> None:
    after = dict(layer.named_buffers())
    assert after.keys() == before.keys()
    for name, buffer in before.items():
        assert after[name].dtype == buffer.dtype and torch.equal(after[name], buffer), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_linear_quantizes_row_by_row(dtype):
    source = make(dtype=dtype)
    layer = Int8Linear.from_linear(source, threshold=4.0)
    codes, absmax = quantize_rowwise(source.weight.detach())
    assert torch.equal(layer.weight_codes, codes) and torch.equal(layer.weight_absmax, absmax)
    assert layer.weight_codes.dtype == torch.int8 and layer.weight_absmax.dtype == torch.float32
    assert (layer.in_features, layer.out_features, layer.threshold) == (40, 12, 4.0)
    assert layer.bias is None and not list(layer.parameters())


def test_large_weights_are_quantized_in_groups_of_rows(monkeypatch):
    source = make(40, 23)
    whole = Int8Linear.from_linear(source)
    monkeypatch.setattr(linear, "QUANTIZE_ELEMENTS", 5 * 40)
    assert_unchanged(Int8Linear.from_linear(source), buffers(whole))
    monkeypatch.setattr(linear, "QUANTIZE_ELEMENTS", 1)
    assert_unchanged(Int8Linear.from_linear(source), buffers(whole))


def test_the_source_layer_is_left_alone():
    source = make(bias=True)
    weight, bias = source.weight.detach().clone(), source.bias.detach().clone()
    layer = Int8Linear.from_linear(source)
    with torch.no_grad():
        source.weight.zero_()
        source.bias.zero_()
    assert torch.equal(layer.weight_absmax, weight.abs().amax(1)) and torch.equal(layer.bias, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_forward_is_the_int8_product_plus_bias(dtype, bias):
    layer = Int8Linear.from_linear(make(bias=bias))
    x = activations(2, 5, 40).to(dtype)
    expected = int8_matmul(x, layer.weight_codes, layer.weight_absmax, 6.0)
    if bias:
        expected = expected + layer.bias.to(dtype)
    output = layer(x)
    assert output.dtype == dtype and output.shape == (2, 5, 12)
    assert torch.equal(output, expected)


@pytest.mark.skipif(c_backend() != "C", reason="install a C compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40,), (1, 40), (1, 1, 40)])
@torch.no_grad()
def test_a_single_row_keeps_16_bits_of_the_input(check_bound, shape, dtype):
    layer, x = Int8Linear.from_linear(make()), activations(*shape).to(dtype)
    output = layer(x)
    assert output.dtype == dtype and output.shape == (*shape[:-1], 12)
    weight = layer.dequantize(torch.float64)
    exact, mass = F.linear(x.double(), weight), weight.abs().sum(1)
    # Half a step of a/32512 for every weight, float32's own rounding of both, and one to the output's dtype.
    bound = 1.02 * (x.abs().amax() / 65024 * mass + 2.0**-21 * exact.abs()) + torch.finfo(dtype).eps / 2 * exact.abs()
    check_bound("Int8Linear: a single row vs float64, of its bound", ((output - exact).abs() / bound).max(), 1)
    if dtype == torch.float32:  # in bfloat16 the output's rounding is most of either error
        paper = (int8_matmul(x, layer.weight_codes, layer.weight_absmax, 6.0) - exact).abs().max()
        check_bound("Int8Linear: error of a single row, of LLM.int8()'s", (output - exact).abs().max() / paper, 0.2)


@pytest.mark.parametrize("case", ["bias", "float16", "two rows", "gradient", "autocast", "no compiler"])
def test_other_rows_follow_llm_int8(case, monkeypatch):
    layer = Int8Linear.from_linear(make(bias=case == "bias"))
    x = activations(2 if case == "two rows" else 1, 40).to(torch.float16 if case == "float16" else torch.float32)
    if case == "no compiler":
        monkeypatch.setattr(rows, "_library", lambda: None)
    with torch.set_grad_enabled(case == "gradient"), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        expected = int8_matmul(x, layer.weight_codes, layer.weight_absmax, 6.0)
        expected = expected if layer.bias is None else expected + layer.bias
        assert torch.equal(layer(x), expected)
    assert (layer.row_matrix() is None) == (case == "bias")


def test_peers_tolerance_1024_to_3072(check_bound):
    """bitsandbytes: fewer than 2.5e-4 of the elements may differ from the float layer by more than 0.02."""
    source = make(1024, 3072, bias=True)
    for threshold in (0.0, 6.0):
        layer = Int8Linear.from_linear(source, threshold)
        x = torch.randn(16, 1024, generator=torch.Generator().manual_seed(2))
        expected = source(x).detach()
        error = (layer(x) - expected).abs()
        check_bound("Int8Linear 1024→3072: share outside atol .02", (error > 0.02).double().mean(), 2.5e-4)
        check_bound("Int8Linear 1024→3072: mean error / mean output", error.mean() / expected.abs().mean(), 0.012)


def test_dequantize_is_within_half_a_step_of_the_source(check_bound):
    source = make()
    layer = Int8Linear.from_linear(source)
    step = layer.weight_absmax[:, None] / 127
    # Half a step, and float32's rounding of the code and of the decoded value.
    error = (layer.dequantize() - source.weight.detach()).abs()
    check_bound("Int8Linear: decoded weight, steps", (error / step).max(), 0.5001)
    assert layer.dequantize(torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(layer.dequantize(torch.bfloat16), layer.dequantize().to(torch.bfloat16))


# ---------------------------------------------------------------------------------------------------------------------
# Nothing changes the weight


CHANGES = {
    "half": lambda layer: layer.half(),
    "bfloat16": lambda layer: layer.bfloat16(),
    "double": lambda layer: layer.double(),
    "float": lambda layer: layer.float(),
    "to dtype": lambda layer: layer.to(torch.bfloat16),
    "to device and dtype": lambda layer: layer.to("cpu", torch.float16),
    "type": lambda layer: layer.type(torch.float16),
    "train": lambda layer: layer.train(),
    "eval": lambda layer: layer.eval(),
    "train after eval": lambda layer: layer.eval().train(),
    "requires_grad_": lambda layer: layer.requires_grad_(True),
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "inside a model": lambda layer: nn.Sequential(layer).half()[0],
    "forward": lambda layer: (layer(activations(3, 40)), layer)[1],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("bias", [False, True])
def test_no_cast_or_mode_changes_the_weight(change, bias):
    layer = Int8Linear.from_linear(make(bias=bias))
    before = buffers(layer)
    assert_unchanged(change(layer), before)


def test_a_move_with_a_cast_moves_and_does_not_cast():
    layer = Int8Linear.from_linear(make(bias=True)).to("meta", torch.float16)
    assert {name: (buffer.device.type, buffer.dtype) for name, buffer in layer.named_buffers()} == {
        "weight_codes": ("meta", torch.int8),
        "weight_absmax": ("meta", torch.float32),
        "bias": ("meta", torch.float32),
    }


def test_training_around_it_leaves_it_alone():
    layer = Int8Linear.from_linear(make())
    before = buffers(layer)
    model = nn.Sequential(make(40, 40), layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(activations(8, 40)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert_unchanged(layer, before)


# ---------------------------------------------------------------------------------------------------------------------
# Saving, loading, the meta device


@pytest.mark.parametrize("bias", [False, True])
def test_state_dict_round_trip_is_bit_exact(bias):
    layer = Int8Linear.from_linear(make(bias=bias))
    names = {"weight_codes", "weight_absmax"} | ({"bias"} if bias else set())
    assert layer.state_dict().keys() == names
    fresh = Int8Linear(40, 12, bias=bias)
    fresh.load_state_dict(layer.state_dict())
    assert_unchanged(fresh, buffers(layer))
    on_meta = Int8Linear(40, 12, bias=bias, device="meta")
    on_meta.load_state_dict(layer.state_dict(), assign=True)
    assert_unchanged(on_meta, buffers(layer))
    x = activations(3, 40)
    assert torch.equal(fresh(x), layer(x)) and torch.equal(on_meta(x), layer(x))


def test_safetensors_round_trip_is_bit_exact(tmp_path):
    model = nn.Sequential(Int8Linear.from_linear(make(40, 33)), Int8Linear.from_linear(make(33, 7, bias=True)))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in loaded.items()}["0.weight_codes"] == torch.int8
    fresh = nn.Sequential(Int8Linear(40, 33), Int8Linear(33, 7, bias=True))
    fresh.load_state_dict(loaded)
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)


@pytest.mark.parametrize("bias", [False, True])
def test_meta_device_has_sizes_and_no_memory(bias):
    with torch.device("meta"):
        source = nn.Linear(4096, 11008, bias=bias, dtype=torch.bfloat16)
        built = Int8Linear(4096, 11008, bias=bias)
    converted = Int8Linear.from_linear(source)
    for layer in (built, converted, Int8Linear(4096, 11008, bias=bias, device="meta")):
        assert all(buffer.is_meta for buffer in layer.buffers())
        assert layer.weight_codes.numel() == 4096 * 11008 and layer.weight_codes.element_size() == 1
        assert layer.weight_absmax.shape == (11008,)
        output = layer(torch.empty(2, 7, 4096, dtype=torch.bfloat16, device="meta"))
        assert output.shape == (2, 7, 11008) and output.dtype == torch.bfloat16


def test_repr_names_shape_and_threshold():
    assert repr(Int8Linear(40, 12, threshold=0)) == (
        "Int8Linear(in_features=40, out_features=12, bias=False, threshold=0.0)"
    )


def test_training_mode_is_inherited():
    assert Int8Linear.from_linear(make()).training
    assert not Int8Linear.from_linear(make().eval()).training


# ---------------------------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_weight_is_refused(bad):
    source = make()
    with torch.no_grad():
        source.weight[3, 5] = source.weight[7, 0] = bad
    with pytest.raises(ValueError, match=r"found in 2 of 12 output rows \(first: 3\).*load another"):
        Int8Linear.from_linear(source)


@pytest.mark.parametrize("threshold", [-1.0, float("nan")])
def test_a_meaningless_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold must be 0 .* the paper's is 6.0"):
        Int8Linear.from_linear(make(), threshold)


def test_gradient_reaches_the_input_through_layer_and_bias():
    layer = Int8Linear.from_linear(make(bias=True))
    x = activations(5, 40).requires_grad_()
    layer(x).sum().backward()
    expected = torch.autograd.grad(F.linear(x, layer.dequantize(), layer.bias).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-6)
