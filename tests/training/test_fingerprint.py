"""The same base is recognised wherever it lies; another one, or another setting, is named with both values."""

import hashlib
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama
from torch import nn

from files import UnsuitableFileError
from int8 import convert_to_int8
from llama import load_checkpoint, save_checkpoint
from lora import LoraConfig, add_lora
from recipe.config import FREE_TO_CHANGE
from training.fingerprint import check_fingerprint, model_digest

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


# --- Two fingerprints ---


def test_every_difference_is_named_with_both_values_in_plain_words():
    then = {
        "base": "a" * 64,
        "data": "b" * 16,
        "plan": "c" * 16,
        "tokenizer": "d" * 64,
        "optim.lr": "0.1",
        "lora.r": "8",
    }
    now = {"base": "e" * 64, "data": "f" * 16, "plan": "0" * 16, "tokenizer": "1" * 64, "optim.lr": "0.2", "new": "1"}
    with pytest.raises(UnsuitableFileError) as caught:
        check_fingerprint(Path("runs/step-1"), then, now, FREE_TO_CHANGE)
    assert str(caught.value).startswith(
        "runs/step-1: it belongs to a run with other settings; "
        "the base's weights: aaaaaaaaaaaa then, eeeeeeeeeeee now; the training tokens: bbbbbbbbbbbb then, ffffffffffff "
        "now; lora.r: 8 then, (unset) now; "
        "new: (unset) then, 1 now; optim.lr: 0.1 then, 0.2 now; the order of the rows: cccccccccccc then, 000000000000 "
        "now; the tokenizer: dddddddddddd then, 111111111111 now; set them as they were, or begin a new run in another "
        "--output; what may differ: data.folder, model.base, "
    )
    check_fingerprint(Path("runs/step-1"), then, dict(then))
