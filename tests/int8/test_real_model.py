"""A trained LLaMA (stories260K) in int8 against itself in float32, on the text it is known to write."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from int8 import Int8Linear, convert_to_int8
from llama.checkpoint import load_checkpoint
from llama.model import Llama


@pytest.fixture
def folder(real_data: Path) -> Path:
    return real_data / "stories260K"


def golden_ids(folder: Path) -> Tensor:
    return torch.tensor([json.loads((folder / "golden.json").read_text())["ids_200"]])


def log_probabilities(model: Llama, token_ids: Tensor) -> Tensor:
    with torch.no_grad():
        return F.log_softmax(model(token_ids).double(), dim=-1)[0, :-1]  # (T-1, V)


def int8_model(folder: Path, threshold: float = 6.0) -> Llama:
    return load_checkpoint(
        folder, dtype=torch.float32, convert_linear=partial(Int8Linear.from_linear, threshold=threshold), progress=False
    )


def test_int8_differs_from_float32_by_a_stated_amount(folder, check_bound):
    token_ids = golden_ids(folder)
    targets = token_ids[0, 1:]
    float32 = log_probabilities(load_checkpoint(folder, dtype=torch.float32, progress=False), token_ids)
    int8 = log_probabilities(int8_model(folder), token_ids)

    kl = (float32.exp() * (float32 - int8)).sum(-1)
    perplexity = [math.exp(F.nll_loss(log_probability, targets).item()) for log_probability in (float32, int8)]
    agreement = (float32.argmax(-1) == int8.argmax(-1)).double().mean().item()
    # The paper's table 1 (C4): perplexity changes by 0.7 % at 125M parameters and by less than 0.5 % above.
    check_bound(
        "stories260K int8 vs float32: perplexity, relative change", abs(perplexity[1] / perplexity[0] - 1), 0.01
    )
    check_bound("stories260K int8 vs float32: mean KL, nats", kl.mean(), 2e-3)
    check_bound("stories260K int8 vs float32: largest KL, nats", kl.max(), 3e-2)
    check_bound("stories260K int8 vs float32: other best token, share", 1 - agreement, 0.02)
    assert kl.mean() > 1e-6  # it is in int8 indeed


def test_converting_while_loading_and_after_loading_is_the_same(folder):
    loaded = int8_model(folder)
    converted = convert_to_int8(load_checkpoint(folder, dtype=torch.float32, progress=False))
    layers = [name for name, module in loaded.named_modules() if isinstance(module, Int8Linear)]
    assert len(layers) == 5 * 7
    assert loaded.state_dict().keys() == converted.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, converted.state_dict()[name]), name


def test_more_outliers_more_exact(folder):
    """Lower thresholds move columns to floating point, until only the weight's own rounding is left."""
    token_ids = golden_ids(folder)
    float32 = log_probabilities(load_checkpoint(folder, dtype=torch.float32, progress=False), token_ids)
    kl = {}
    for threshold in (0.0, 6.0, 1e-30):
        int8 = log_probabilities(int8_model(folder, threshold), token_ids)
        kl[threshold] = (float32.exp() * (float32 - int8)).sum(-1).mean().item()
    assert kl[1e-30] < kl[6.0] <= kl[0.0] * 1.5
