"""One prompt: cached against uncached, limits, stops, seeds, the real model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama

from llama.decoding import generate
from llama.decoding.generation import new_cache, next_logits
from llama.model import Llama

Check = Callable[[str, float, float], None]

PROMPTS = [[1, 5, 9, 9, 30], [1], [1, 60, 2, 17, 8, 44, 3], [7, 7]]
SAMPLED = {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.3}


@pytest.fixture(scope="module")
def model() -> Llama:
    return tiny_llama(0)


def generators(seeds: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.5}, SAMPLED], ids=["greedy", "penalty", "sampled"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_cached_equals_uncached(model: Llama, prompt: list[int], options: dict[str, float]) -> None:
    runs = [
        list(generate(model, prompt, max_new_tokens=30, use_cache=cached, generator=generators(range(1))[0], **options))
        for cached in (True, False)
    ]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 30


@torch.no_grad()
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_cached_logits_equal_uncached(n_kv_heads: int, check_bound: Check) -> None:
    """Token by token. The bound is that of the original implementation's float32 parity."""
    model = tiny_llama(1, n_kv_heads=n_kv_heads)
    tokens = torch.tensor([[1, 60, 2, 17], [44, 3, 3, 5]])
    cache = new_cache(model, 2, 23)
    for _ in range(20):
        cached, plain = next_logits(model, tokens[:, cache.length :], cache), next_logits(model, tokens, None)
        check_bound("decoding: cached vs uncached logits, float32", (cached - plain).abs().max(), 1e-5)
        tokens = torch.cat((tokens, plain.argmax(-1, keepdim=True)), dim=1)


def test_greedy_is_the_argmax_of_the_forward_pass(model: Llama) -> None:
    tokens = [1, 5]
    for token in generate(model, [1, 5], max_new_tokens=10):
        assert token == int(model(torch.tensor([tokens]))[0, -1].argmax())
        tokens.append(token)


def test_seed_decides(model: Llama) -> None:
    def run(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return list(generate(model, [1], max_new_tokens=30, temperature=1.0, generator=generator))

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_top_k_one_is_greedy(model: Llama) -> None:
    sampled = generate(model, [1, 2, 3], max_new_tokens=20, temperature=1.5, top_k=1)
    assert list(sampled) == list(generate(model, [1, 2, 3], max_new_tokens=20))


def test_penalty_reaches_prompt_and_generated_tokens(model: Llama) -> None:
    """A penalty beyond all measure forbids every repetition."""
    answer = list(generate(model, PROMPTS[2], max_new_tokens=30, repetition_penalty=1e6))
    assert len(set(answer)) == 30
    assert not set(answer) & set(PROMPTS[2])


def test_stop_id_ends_and_is_not_yielded(model: Llama) -> None:
    whole = list(generate(model, [1], max_new_tokens=20))
    stop = whole[7]
    assert list(generate(model, [1], max_new_tokens=20, stop_ids=[stop])) == whole[: whole.index(stop)]
    assert list(generate(model, [1], max_new_tokens=20, stop_ids=(whole[0],))) == []


@torch.no_grad()
def test_observer_sees_the_logits_before_each_choice(model: Llama, check_bound: Check) -> None:
    """Untouched by penalty and temperature, one vector per step, and the one that chose the stop id among them."""
    whole = list(generate(model, [1, 5], max_new_tokens=9, repetition_penalty=1e6))
    seen: list[torch.Tensor] = []
    stop = {whole[-1]}  # under this penalty no token comes twice
    answer = generate(
        model, [1, 5], max_new_tokens=9, repetition_penalty=1e6, stop_ids=stop, observe=lambda x: seen.append(x.clone())
    )
    assert list(answer) == whole[:-1]
    plain = model(torch.tensor([[1, 5, *whole[:-1]]]))[0, 1:]  # (9, V)
    check_bound("decoding: observed logits vs forward pass, float32", (torch.stack(seen) - plain).abs().max(), 1e-5)


def test_yields_while_it_works(model: Llama) -> None:
    """An iterator that is left early has computed no more than was taken."""
    calls = []
    handle = model.norm.register_forward_hook(lambda *_: calls.append(1))
    answer = generate(model, [1, 2], max_new_tokens=50)
    assert calls == []
    next(answer)
    next(answer)
    assert len(calls) == 2
    handle.remove()


def test_gradients_stay_off_and_the_mode_outside_is_kept(model: Llama) -> None:
    """A suspended generator must not switch gradients off for the code around it."""
    modes: list[bool] = []
    handle = model.norm.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    answer = generate(model, [1, 2], max_new_tokens=5)
    next(answer)
    assert torch.is_grad_enabled()
    assert model(torch.tensor([[1]])).requires_grad
    assert len(list(answer)) == 4
    assert modes == [False, True, False, False, False, False]
    handle.remove()


def test_window_is_filled_exactly(model: Llama) -> None:
    window = model.config.max_seq_len
    assert len(list(generate(model, [1] * 60, max_new_tokens=window - 60))) == window - 60


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [
        ([1] * 60, 5, "60 tokens; with 5 new ones that makes 65, but the model's window is 64.*max_new_tokens to 4"),
        ([1] * 64, 1, "64 tokens and fills the model's window of 64: shorten it"),
        ([], 5, r"no tokens: begin it with the BOS id"),
        ([1, 61], 5, "token ids 1 to 61, the model has 0 to 60"),
        ([-1, 3], 5, "token ids -1 to 3"),
        ([1], 0, "max_new_tokens = 0 must be at least 1"),
    ],
)
def test_impossible_requests_fail_at_the_call(model: Llama, prompt: list[int], new: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, prompt, max_new_tokens=new)  # not even iterated


def test_training_mode_is_refused(model: Llama) -> None:
    model.train()
    try:
        with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
            generate(model, [1], max_new_tokens=1)
    finally:
        model.eval()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(poison: float) -> None:
    """Though only one of them is, and not the largest."""
    model = tiny_llama(3)
    model.output.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor([7]), poison))
    with pytest.raises(ValueError, match=r"logits after 2 tokens are not finite.*torch\.float32"):
        list(generate(model, [1, 2], max_new_tokens=3))


def test_bfloat16_generates() -> None:
    model = tiny_llama(4).to(torch.bfloat16)
    assert len(list(generate(model, [1, 2], max_new_tokens=10))) == 10


@pytest.mark.parametrize("folder", ["stories260K", "stories260K-meta"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_stories260k_tells_its_published_story(
    real_data: Path, folder: str, use_cache: bool, check_bound: Check
) -> None:
    """Greedy from BOS alone, float32: ids and text byte for byte, and the first logits against float64."""
    from llama.checkpoint import load_checkpoint
    from llama.tokenizer import Tokenizer

    golden = json.loads((real_data / "stories260K" / "golden.json").read_text(encoding="utf-8"))
    model = load_checkpoint(real_data / folder, dtype=torch.float32, progress=False)
    tokenizer = Tokenizer(real_data / folder)
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.bos_id]]))[0, 0].double()
    error = (logits - torch.tensor(golden["logits_at_bos"], dtype=torch.float64)).abs().max()
    # Five layers of float32 products, at most 172 terms each, behind logits of magnitude 8.
    check_bound("stories260K: logits after BOS vs golden float64", error, 1e-5)
    ids = list(generate(model, [tokenizer.bos_id], max_new_tokens=256, use_cache=use_cache))
    for n in (200, 256):
        assert [tokenizer.bos_id, *ids[:n]] == golden[f"ids_{n}"]
        assert tokenizer.decode(ids[:n]).encode() == golden[f"text_{n}"].encode()
