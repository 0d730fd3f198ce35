"""The published shapes and the rule for the hidden size."""

import pytest
import torch

from llama import Llama, LlamaConfig
from llama.config import NAMED, swiglu_hidden_dim

# (hidden_dim, parameters): hidden sizes from the papers, counts from the released checkpoints.
PUBLISHED = {
    "7B": (11008, 6_738_415_616),
    "13B": (13824, 13_015_864_320),
    "33B": (17920, 32_528_943_616),
    "65B": (22016, 65_285_660_672),
    "LLaMA-2-7B": (11008, 6_738_415_616),
    "LLaMA-2-13B": (13824, 13_015_864_320),
    "LLaMA-2-70B": (28672, 68_976_648_192),
    "TinyLlama-1.1B": (5632, 1_100_048_384),
}


@pytest.mark.parametrize("name", NAMED)
def test_published_shapes(name):
    config = LlamaConfig.named(name)
    assert (config.hidden_dim, config.n_parameters) == PUBLISHED[name]


@pytest.mark.parametrize("tie", [False, True])
def test_n_parameters_counts_the_model(tie):
    config = LlamaConfig(50, 24, 3, 4, 2, 40, tie_embeddings=tie)
    with torch.device("meta"):
        model = Llama(config)
    assert config.n_parameters == sum(p.numel() for p in model.parameters())


def test_hidden_dim_rule_on_other_multiples():
    assert swiglu_hidden_dim(64, 4) == 172  # 2·4·64/3 = 170.67 -> 170 -> 172
    assert swiglu_hidden_dim(64, 256) == 256


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"'8B'.*7B, 13B"):
        LlamaConfig.named("8B")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": -4}, "dim = -4"),
        ({"n_layers": 0}, "n_layers = 0"),
        ({"norm_eps": float("nan")}, "norm_eps = nan"),
        ({"n_heads": 5}, "dim = 24 over n_heads = 5"),
        ({"n_heads": 8, "n_kv_heads": 8}, "even head size"),  # 24 / 8 = 3, odd
        ({"n_kv_heads": 3}, "multiple of n_kv_heads = 3"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    shape = {"vocab_size": 50, "dim": 24, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 40}
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**(shape | change))
