"""Decoding against transformers' generate on the same weights: ids equal, scores to float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama
from transformers_peer import as_transformers

from llama.decoding import Sampling, beam_search, generate, generate_batch
from llama.decoding.sampling import distribution
from llama.model import Llama

transformers = pytest.importorskip("transformers", reason="install the extra: parity")
Check = Callable[[str, float, float], None]

PROMPTS = [[1, 5, 9, 9, 30], [1, 60], [1, 60, 2, 17, 8, 44, 3], [7, 7, 12]]
PAD = 0
NEW = 16


@pytest.fixture(scope="module", params=[(0, 4), (1, 2), (2, 1)], ids=["mha", "gqa", "mqa"])
def pair(request: pytest.FixtureRequest) -> tuple[Llama, Any]:
    seed, n_kv_heads = request.param
    model = tiny_llama(seed, n_kv_heads=n_kv_heads)
    return model, as_transformers(model, bos_token_id=None, eos_token_id=None, pad_token_id=PAD)


def peer_ids(peer: Any, prompt: list[int], **options: Any) -> list[int]:
    out = peer.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, **options)
    return out[0, len(prompt) :].tolist()


def until_stop(ids: list[int], stop_ids: list[int]) -> list[int]:
    """Theirs ends with the stop token and then pads; ours has neither."""
    return ids[: next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))]


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy(pair: tuple[Llama, Any], prompt: list[int]) -> None:
    model, peer = pair
    assert list(generate(model, prompt, max_new_tokens=NEW)) == peer_ids(peer, prompt)


@pytest.mark.parametrize("penalty", [0.8, 1.3, 2.5])
def test_repetition_penalty(pair: tuple[Llama, Any], penalty: float) -> None:
    model, peer = pair
    for prompt in PROMPTS:
        ours = list(generate(model, prompt, max_new_tokens=NEW, repetition_penalty=penalty))
        assert ours == peer_ids(peer, prompt, repetition_penalty=penalty)


def test_batch_with_left_padding(pair: tuple[Llama, Any]) -> None:
    model, peer = pair
    longest = max(map(len, PROMPTS))
    tokens = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    stop_ids = [generate_batch(model, PROMPTS, max_new_tokens=NEW)[0][5], 23]
    theirs = peer.generate(
        tokens, attention_mask=mask, do_sample=False, max_new_tokens=NEW, eos_token_id=stop_ids, pad_token_id=PAD
    )
    ours = generate_batch(model, PROMPTS, max_new_tokens=NEW, stop_ids=stop_ids)
    assert ours == [until_stop(row, stop_ids) for row in theirs[:, longest:].tolist()]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("n_stops", [0, 2])
@pytest.mark.parametrize("beams", [2, 5])
def test_beam_search(
    pair: tuple[Llama, Any], beams: int, n_stops: int, length_penalty: float, check_bound: Check
) -> None:
    """`early_stopping="never"` is their exact search; the default is a heuristic that may miss the best answer."""
    model, peer = pair
    for prompt in PROMPTS[:2]:
        # Stop ids that really occur: tokens of the answers found without any.
        stop_ids = beam_search(model, prompt, beams=beams, max_new_tokens=NEW)[-1].ids[3 : 3 + n_stops]
        theirs = peer.generate(
            torch.tensor([prompt]),
            do_sample=False,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=NEW,
            length_penalty=length_penalty,
            early_stopping="never",
            eos_token_id=stop_ids or None,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ours = beam_search(
            model,
            prompt,
            beams=beams,
            max_new_tokens=NEW,
            length_penalty=length_penalty,
            stop_ids=stop_ids,
        )
        their_ids = [until_stop(row, stop_ids) for row in theirs.sequences[:, len(prompt) :].tolist()]
        assert [hypothesis.ids for hypothesis in ours] == their_ids
        # At most 16 log-probabilities, each from logits equal to 1e-5; α = -0.5 multiplies the sum by 4.
        bound = NEW * 1e-5 * max(1.0, NEW**-length_penalty)
        for hypothesis, score in zip(ours, theirs.sequences_scores.tolist(), strict=True):
            check_bound("parity: beam search scores vs transformers", abs(hypothesis.score - score), bound)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 0.4, "top_k": 50, "top_p": 0.9},  # MedAlpaca's
        {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.4},
    ],
)
def test_distribution(options: dict[str, Any], check_bound: Check) -> None:
    """The probabilities drawn from, step by step in transformers' own order of logits processors."""
    process = transformers.generation.logits_process
    logits = 3 * torch.randn(64, 61, generator=torch.Generator().manual_seed(0))
    seen_ids = torch.randint(61, (64, 9), generator=torch.Generator().manual_seed(1))
    steps = transformers.LogitsProcessorList()
    if "repetition_penalty" in options:
        steps.append(process.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    steps.append(process.TemperatureLogitsWarper(options["temperature"]))
    if "top_k" in options:
        steps.append(process.TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        steps.append(process.TopPLogitsWarper(options["top_p"]))
    theirs = steps(seen_ids, logits.clone()).softmax(-1)
    seen = torch.zeros(64, 61, dtype=torch.bool).scatter(1, seen_ids, True)
    ours = distribution(logits, Sampling(**options), seen)
    assert torch.equal(ours > 0, theirs > 0)
    # Softmax of arguments up to 2·12 / 0.4 in magnitude, each with a relative rounding error ε, on both sides.
    check_bound("parity: distribution vs transformers", (ours - theirs).abs().max(), 2 * 60 * torch.finfo().eps)
