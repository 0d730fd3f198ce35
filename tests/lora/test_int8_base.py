"""LoRA beside a frozen int8 base: the third way to fine-tune."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from int8 import Int8Linear, convert_to_int8
from llama import Llama
from lora import (
    LoraConfig,
    LoraLinear,
    adapters_disabled,
    add_lora,
    load_adapter,
    lora_layers,
    merge_lora,
    save_adapter,
)

CONFIG = LoraConfig(r=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj", "down_proj"))


@pytest.fixture
def int8_llama(make_llama: Callable[[], Llama]) -> Llama:
    model = make_llama()
    convert_to_int8(model, skip=("output",))
    return model.eval()


def codes(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.replace(".base.", "."): tensor.clone()
        for name, tensor in model.state_dict().items()
        if "weight_codes" in name or "weight_absmax" in name
    }


def test_a_fresh_adapter_leaves_the_base_as_it_is(int8_llama: Llama, token_ids: Tensor) -> None:
    before = int8_llama(token_ids)
    assert torch.equal(add_lora(int8_llama, CONFIG)(token_ids), before)
    assert all(isinstance(layer.base, Int8Linear) for _, layer in lora_layers(int8_llama))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_update_is_that_beside_a_float_base(dtype: torch.dtype) -> None:
    linear = nn.Linear(16, 12, bias=False, dtype=dtype)
    layers = [
        LoraLinear(base, r=3, alpha=6, dropout=0.0, generator=torch.Generator().manual_seed(0))
        for base in (linear, Int8Linear.from_linear(linear))
    ]
    for layer in layers:
        nn.init.ones_(layer.lora_B)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    beside_int8 = layers[1](x)
    assert beside_int8.dtype == dtype
    layers[0].base = layers[1].base
    assert torch.equal(layers[0](x), beside_int8)


def test_training_learns_and_leaves_the_codes(int8_llama: Llama, token_ids: Tensor) -> None:
    before, clean = codes(int8_llama), int8_llama(token_ids)
    model = add_lora(int8_llama, CONFIG, generator=torch.Generator().manual_seed(0)).train()
    model.gradient_checkpointing = True
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(model(token_ids[:, :-1]).flatten(0, 1), token_ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = codes(model)
    assert len(before) == 2 * 14 and all(torch.equal(after[name], before[name]) for name in before)
    with adapters_disabled(model.eval()):
        assert torch.equal(model(token_ids), clean)


def test_merging_is_refused_and_the_remedy_works(
    int8_llama: Llama, make_llama: Callable[[], Llama], token_ids: Tensor, tmp_path: Path
) -> None:
    model = add_lora(int8_llama, CONFIG, generator=torch.Generator().manual_seed(0))
    for _, layer in lora_layers(model):
        nn.init.normal_(layer.lora_B, std=0.1, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match=r"Int8Linear has no floating-point weight.*Reload the base in 16 bits"):
        merge_lora(model)
    save_adapter(model, tmp_path)
    reloaded = load_adapter(make_llama().bfloat16().eval(), tmp_path)
    beside = reloaded(token_ids)
    merged = merge_lora(reloaded, unload=True)
    assert not list(lora_layers(merged))
    # bf16: relative roundings of 2⁻⁸ in each of two layers' seven projections, both ways
    assert (merged(token_ids) - beside).abs().max() <= 14 * 2**-8 * beside.abs().max()
