import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import lora as oracle
from torch import Tensor, nn

from llama import Llama, LlamaConfig
from lora import (
    LoraConfig,
    LoraLinear,
    adapters_disabled,
    add_lora,
    lora_layers,
    merge_lora,
    save_adapter,
    unmerge_lora,
)
from lora.merge import merged_weight

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_merged_model_answers_like_the_adapted_one(
    make_adapted: Callable, token_ids: Tensor, check_bound: Callable
) -> None:
    model = make_adapted()
    beside = model(token_ids)
    within = merge_lora(model)(token_ids)
    assert (beside - within).abs().max() > 0  # they are two computations
    error = (beside - within).abs().max() / beside.abs().max()
    # 15 linear layers one after another, each rounding some 50 sums afresh at 6e-8: √(15·50) · 6e-8.
    check_bound("lora: merged vs adapted, logits (relative), float32", error.detach(), 1.7e-6)


def test_merged_layer_answers_like_the_adapted_one(check_bound: Callable) -> None:
    """The 1e-6 that peers assert, on a layer whose outputs are of order 1."""
    generator = torch.Generator().manual_seed(0)
    layer = LoraLinear(nn.Linear(64, 64), r=8, alpha=16, dropout=0.0, generator=generator)
    nn.init.normal_(layer.lora_B, std=0.05, generator=generator)
    model = nn.Sequential(layer)
    x = torch.rand(16, 64, generator=generator) - 0.5
    beside = model(x).detach()
    check_bound(
        "lora: merged vs adapted, one layer, float32", (merge_lora(model)(x) - beside).abs().max().detach(), 1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_weight_is_rounded_once(dtype: torch.dtype, check_bound: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 30, generator=generator).to(dtype)
    A, B = torch.randn(4, 30, generator=generator), torch.randn(40, 4, generator=generator)
    exact = oracle.merged(weight.double().numpy(), A.numpy(), B.numpy(), 0.7)
    error = np.abs(merged_weight(weight, A, B, 0.7).double().numpy() - exact) / np.abs(exact)
    # Half a unit in the last place, and a little for float64's own rounding where terms cancel.
    check_bound(f"lora: merged weight vs oracle, {dtype}", error.max(), torch.finfo(dtype).eps / 2 * (1 + 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_unmerging_restores_every_bit(
    make_adapted: Callable, token_ids: Tensor, dtype: torch.dtype, check_bound: Callable
) -> None:
    model = make_adapted().to(dtype)
    before, answer = values(model), model(token_ids)
    merge_lora(model)
    assert not same(before, values(model))
    unmerge_lora(model)
    error = max((tensor - before[name]).abs().max() for name, tensor in values(model).items())
    check_bound(f"lora: weights after merge and unmerge, {dtype}", error, 0.0)
    assert torch.equal(model(token_ids), answer)


def test_arithmetic_alone_would_not_restore_16_bits(check_bound: Callable) -> None:
    """Why `merge_lora` keeps the weight: subtracting the update again loses most of a small weight's bits."""
    weight = torch.full((1, 1), 0.001, dtype=torch.bfloat16)
    A, B = torch.ones(1, 1), torch.ones(1, 1)
    there_and_back = merged_weight(merged_weight(weight, A, B, 1.0), A, B, -1.0)
    assert there_and_back.item() == 0.0  # 1.001 is 1 in 8 bits
    single = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    A, B = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in [(4, 50), (50, 4)])
    error = (merged_weight(merged_weight(single, A, B, 0.5), A, B, -0.5) - single).abs().max()
    check_bound("lora: merge and subtract again, float32", error, 1e-6)


@given(
    r=st.integers(1, 6),
    alpha=st.floats(0.1, 50),
    rslora=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=40, deadline=None)
def test_any_adapter_merges_and_unmerges(r: int, alpha: float, rslora: bool, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = LoraLinear(nn.Linear(12, 9, dtype=dtype), r, alpha, 0.5, rslora, generator=generator).eval()
    nn.init.normal_(layer.lora_B, generator=generator)
    model = nn.Sequential(layer)
    x, before = torch.randn(3, 12, generator=generator).to(dtype), values(model)
    beside = model(x).double()
    within = merge_lora(model)(x).double()
    scale = (x.abs() @ layer.base.weight.abs().T).double() + layer.scaling * (
        x.double().abs() @ layer.lora_A.double().abs().T @ layer.lora_B.double().abs().T
    )
    # Both ways round at most d + r + 6 times in the dtype (float32's sums are rounded in each step).
    assert ((beside - within).abs() <= 2 * (12 + r + 6) * torch.finfo(dtype).eps / 2 * (scale + 1)).all()
    assert same(values(unmerge_lora(model)), before)


def test_unloading_leaves_the_plain_model(make_adapted: Callable, make_llama: Callable, token_ids: Tensor) -> None:
    model = make_adapted()
    kept = merge_lora(copy.deepcopy(model))(token_ids)
    unloaded = merge_lora(model, unload=True)
    assert unloaded is model and not list(lora_layers(model)) and not hasattr(model, "lora_config")
    assert model.state_dict().keys() == make_llama().state_dict().keys()
    assert torch.equal(model(token_ids), kept)
    add_lora(model, LoraConfig(r=2, alpha=2, dropout=0.0, targets=("wq",)))  # and it can be adapted anew


def test_merged_adapters_can_still_be_unloaded(make_adapted: Callable, token_ids: Tensor) -> None:
    model = merge_lora(make_adapted())
    answer = model(token_ids)
    assert torch.equal(merge_lora(model, unload=True)(token_ids), answer)
    assert not list(lora_layers(model))


def test_mode_changes_neither_merge_nor_unmerge(make_adapted: Callable, token_ids: Tensor) -> None:
    for model in (make_adapted(), merge_lora(make_adapted())):
        before = values(model)
        model.train().eval().to("cpu").train().eval()
        assert same(values(model), before)


def test_merging_twice_and_unmerging_twice_are_refused(make_adapted: Callable, make_llama: Callable) -> None:
    model = make_adapted()
    with pytest.raises(ValueError, match="not merged"):
        unmerge_lora(model)
    before = values(merge_lora(model))
    with pytest.raises(ValueError, match="merged already"):
        merge_lora(model)
    assert same(values(model), before)
    with pytest.raises(ValueError, match="unmerge_lora first"), adapters_disabled(model):
        pass
    for function in (merge_lora, unmerge_lora):
        with pytest.raises(ValueError, match="no LoRA adapters"):
            function(make_llama())


def test_an_adapter_that_is_not_finite_is_not_merged(make_adapted: Callable) -> None:
    model = make_adapted()
    model.layers[1].attention.wv.lora_B.data[0, 0] = math.nan
    before = model.state_dict()["layers.0.attention.wq.base.weight"].clone()
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.wv.*NaN"):
        merge_lora(model)
    assert torch.equal(model.state_dict()["layers.0.attention.wq.base.weight"], before)


def test_a_tied_weight_is_not_merged_into() -> None:
    model = Llama(LlamaConfig(20, 8, 1, 2, 2, 8, tie_embeddings=True)).init_weights()
    add_lora(model, LoraConfig(r=2, alpha=2, dropout=0.0, targets=("output",)))
    with pytest.raises(ValueError, match=r"tied \(tok_embeddings\.weight = output\.base\.weight\)"):
        merge_lora(model)


class CodesOnly(nn.Module):
    """A quantized linear layer as LoRA sees it: no floating-point weight."""

    in_features, out_features = 32, 32

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight_codes", torch.zeros(32, 32, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight_codes.T.to(x.dtype)


def test_merging_into_a_quantized_base_is_refused_with_the_remedy(make_llama: Callable, token_ids: Tensor) -> None:
    model = make_llama()
    model.layers[1].attention.wq = CodesOnly()
    add_lora(model, LoraConfig(r=2, alpha=2, dropout=0.0, targets=("wq", "wv")))
    before = values(model)
    for unload in (False, True):
        with pytest.raises(ValueError, match=r"layers\.1\.attention\.wq: CodesOnly.*[Rr]eload the base in 16 bits"):
            merge_lora(model, unload=unload)
    assert same(values(model), before) and len(list(lora_layers(model))) == 4
    assert torch.isfinite(model(token_ids)).all()


def test_saving_a_merged_adapter_saves_the_adapter(make_adapted: Callable, tmp_path) -> None:
    model = make_adapted()
    save_adapter(model, tmp_path / "beside")
    save_adapter(merge_lora(model), tmp_path / "within")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "beside" / weights).read_bytes() == (tmp_path / "within" / weights).read_bytes()
