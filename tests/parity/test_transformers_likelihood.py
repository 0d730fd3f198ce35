"""Option log-likelihoods from our Llama equal those computed from transformers' logits, with the same weights."""

import pytest
import torch
from transformers_peer import as_transformers

from evaluation import Choices, log_likelihoods, log_likelihoods_reference
from llama import Llama, LlamaConfig

transformers = pytest.importorskip("transformers", reason="install the extra: parity")


def twin(config: LlamaConfig, seed: int) -> tuple[Llama, torch.nn.Module]:
    """Our model and transformers' with the same random weights, carried over by our own map of names and rows."""
    # Seven times wider than GPT-2's initialisation, so that likelihoods differ by nats. Logits then reach 4 or so,
    # where float32 rounds by 2e-7, and every layer adds its own rounding.
    ours = Llama(config).init_weights(torch.Generator().manual_seed(seed), std=0.15).eval()
    return ours, as_transformers(ours)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (4, 2), (8, 1)])
def test_option_log_likelihoods(check_bound, n_heads: int, n_kv_heads: int, tied: bool) -> None:
    config = LlamaConfig(128, 64, 3, n_heads, n_kv_heads, 96, max_seq_len=64, tie_embeddings=tied)
    ours, theirs = twin(config, seed=n_heads)
    draw = torch.Generator().manual_seed(9)

    def ids(n: int) -> list[int]:
        return torch.randint(3, 128, (n,), generator=draw).tolist()

    sizes = [(12, [1, 4, 2]), (5, [3, 3]), (20, [2, 2, 2, 2, 2])]
    batch = [Choices([1, *ids(prompt)], [ids(n) for n in options]) for prompt, options in sizes]
    expected = []
    for choices in batch:
        for option in choices.options:
            with torch.no_grad():
                logits = theirs(torch.tensor([choices.prompt + option])).logits[0].float()
            log_probs = logits[len(choices.prompt) - 1 : -1].log_softmax(-1)
            expected.append(sum(log_probs[t, token].item() for t, token in enumerate(option)))
    for implementation in (log_likelihoods, log_likelihoods_reference):
        got = [value for row in implementation(ours, batch) for value in row]
        assert len(got) == len(expected) == 10
        assert max(expected) - min(expected) > 5  # a wrong position could not hide
        error = max(abs(a - b) for a, b in zip(got, expected, strict=True))
        check_bound(f"{implementation.__name__}: vs transformers, float32", error, 1e-5)
