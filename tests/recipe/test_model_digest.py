"""The same model is recognised wherever it lies, and another one is another."""

import hashlib
from copy import deepcopy

import pytest
import torch
from tiny_models import tiny_llama
from torch import nn

from int8 import convert_to_int8
from llama import load_checkpoint, save_checkpoint
from lora import LoraConfig, add_lora
from recipe import load_for_inference, model_digest

NOTHING = hashlib.sha256().hexdigest()


def adapted(seed: int, *, int8: bool = False) -> nn.Module:
    model = tiny_llama(seed)
    if int8:
        convert_to_int8(model)
    add_lora(model, LoraConfig(r=2, alpha=4.0, dropout=0.0, targets=("q_proj", "v_proj")))
    return model


def test_a_base_is_recognised_in_every_layout(tmp_path):
    model = tiny_llama(0)
    digests = set()
    for layout in ("hf", "meta"):
        save_checkpoint(model, tmp_path / layout, layout=layout)
        loaded = load_checkpoint(tmp_path / layout, dtype=torch.float32, progress=False)
        loaded.requires_grad_(False)
        digests.add(model_digest(loaded))
    model.requires_grad_(False)
    assert digests == {model_digest(model)}
    assert model_digest(model.to(torch.bfloat16)) not in digests


@pytest.mark.parametrize("int8", [False, True])
def test_another_base_is_another_and_an_adapter_is_none_of_it(int8):
    model, same, other = adapted(0, int8=int8), adapted(0, int8=int8), adapted(1, int8=int8)
    assert model_digest(model) == model_digest(same) != model_digest(other)
    with torch.no_grad():
        for parameter in same.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert model_digest(model) == model_digest(same)


def test_where_everything_is_trained_there_is_no_base():
    assert model_digest(tiny_llama(0)) == NOTHING


@pytest.mark.parametrize(("rows", "spacing"), [(32, 1), (33, 2), (100, 4)])
def test_every_element_of_a_small_tensor_counts_and_a_large_one_is_sampled(rows, spacing):
    """4,096 elements are looked at one by one; of 4,224 every second; of 12,800 every fourth."""
    model = nn.Linear(128, rows, bias=False).requires_grad_(False)
    before, flat = model_digest(model), model.weight.data.view(-1)
    for i in range(0, flat.numel(), 61):
        old = flat[i].clone()
        flat[i] += 1
        assert (model_digest(model) != before) == (i % spacing == 0)
        flat[i] = old
    assert model_digest(model) == before


def test_names_shapes_and_dtypes_count():
    def digest(**tensors: torch.Tensor) -> str:
        model = nn.Module()
        for name, tensor in tensors.items():
            model.register_buffer(name, tensor)
        return model_digest(model)

    zeros = torch.zeros(4, 2)
    digests = [
        digest(a=zeros),
        digest(b=zeros),
        digest(a=zeros.view(2, 4)),
        digest(a=zeros.half().view(torch.int16)),
        digest(a=zeros.int()),
        digest(a=zeros, b=torch.zeros(())),
        digest(a=torch.zeros(0)),
    ]
    assert len(set(digests)) == len(digests) and NOTHING not in digests


def test_what_is_computed_anew_at_each_start_does_not_count():
    model = nn.Module()
    model.register_buffer("angles", torch.ones(3), persistent=False)
    assert model_digest(model) == NOTHING


def test_an_adapter_counts_where_what_is_trained_counts():
    model = adapted(0)
    same = deepcopy(model)
    assert model_digest(model, trained=True) == model_digest(same, trained=True)
    with torch.no_grad():
        next(p for p in same.parameters() if p.requires_grad).add_(1.0)
    assert model_digest(model, trained=True) != model_digest(same, trained=True)


def test_the_miniature_answers_as_itself_and_in_int8_as_another():
    plain, again, int8 = (load_for_inference(int8=int8, progress=False).identity() for int8 in (False, False, True))
    assert plain == again and plain["LoRA scaling"] == "no adapter"
    assert [name for name in plain if plain[name] != int8[name]] == ["int8 threshold", "weights"]
    other = load_for_inference(int8=True, int8_threshold=0.5, progress=False).identity()
    assert [name for name in int8 if int8[name] != other[name]] == ["int8 threshold"]
