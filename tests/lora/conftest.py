"""A small grouped-query LLaMA, and the same with a trained-looking adapter."""

from collections.abc import Callable

import pytest
import torch

from llama import Llama, LlamaConfig
from lora import LoraConfig, add_lora, lora_layers

CONFIG = LlamaConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48)
EVERYWHERE = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "output")


@pytest.fixture
def make_llama() -> Callable[[], Llama]:
    """Each call gives the same weights anew."""
    return lambda: Llama(CONFIG).init_weights(torch.Generator().manual_seed(0), std=0.2)


@pytest.fixture
def token_ids() -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_adapted(make_llama: Callable[[], Llama]) -> Callable[..., Llama]:
    """A LLaMA with adapters whose B is not zero."""

    def make(targets: tuple[str, ...] = EVERYWHERE, seed: int = 2, **settings: float) -> Llama:
        generator = torch.Generator().manual_seed(seed)
        config = LoraConfig(**({"r": 4, "alpha": 8, "dropout": 0.0} | settings), targets=targets)
        model = add_lora(make_llama(), config, generator=generator)
        for _, layer in lora_layers(model):
            torch.nn.init.normal_(layer.lora_B, std=0.1, generator=generator)
        return model.eval()

    return make
