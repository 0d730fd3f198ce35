"""Many prompts: each answer is the one its prompt gets alone, in any batch, whoever comes and goes beside it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama

from llama.decoding import generate, generate_batch, generate_many, in_order
from llama.decoding.generation import new_cache, next_logits, pad_left
from llama.model import Llama

PROMPTS = [[1, 5, 9, 9, 30], [1], [1, 60, 2, 17, 8, 44, 3], [7, 7], [3] * 30, [2, 4, 8, 16, 32], [11, 12, 13], [1, 2]]
LIMITS = [9, 25, 1, 14, 33, 2, 20, 5]
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.5},
    "sampled": {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.3},
}


@pytest.fixture(scope="module")
def model() -> Llama:
    return tiny_llama(0)


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]


def alone(model: Llama, **options: Any) -> list[list[int]]:
    """Each prompt by itself and without a cache."""
    return [
        list(generate(model, prompt, max_new_tokens=limit, generator=generator, use_cache=False, **options))
        for prompt, limit, generator in zip(PROMPTS, LIMITS, generators(), strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 20])
@pytest.mark.parametrize("kind", OPTIONS)
def test_every_answer_is_the_one_alone(model: Llama, kind: str, batch_size: int) -> None:
    options = {"max_new_tokens": LIMITS, "generators": generators()} | OPTIONS[kind]
    answers = dict(generate_many(model, PROMPTS, batch_size=batch_size, **options))
    assert [answers[index] for index in range(len(PROMPTS))] == alone(model, **OPTIONS[kind])


def test_a_batch_is_all_prompts_at_once(model: Llama) -> None:
    assert generate_batch(model, PROMPTS, max_new_tokens=LIMITS) == alone(model)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_rows_stop_on_their_own(model: Llama, batch_size: int) -> None:
    """One at its first token, one in the middle, the others not at all or where chance has it."""
    whole = alone(model)
    stops = {whole[0][0], whole[4][7]}
    answers = in_order(generate_many(model, PROMPTS, batch_size=batch_size, max_new_tokens=LIMITS, stop_ids=stops))
    for full, answer in zip(whole, answers, strict=True):
        assert answer == full[: next((i for i, token in enumerate(full) if token in stops), len(full))]


@torch.no_grad()
def test_newcomers_change_no_ones_logits(model: Llama, check_bound: Callable[[str, float, float], None]) -> None:
    """A longer and a shorter prompt join a running one. The bound is that of cached against uncached."""
    texts = [[5, 6, 7], [1, 60, 2, 17, 8], [9]]
    cache = new_cache(model, 3, 12)
    cache.rows = 0
    for i, text in enumerate(texts):
        next_logits(model, torch.tensor([text]), cache.join(1, len(text)))
        for row in texts[: i + 1]:
            row.append((7 * len(row) + i) % 61)
        step = next_logits(model, torch.tensor([row[-1:] for row in texts[: i + 1]]), cache)
        for row, logits in zip(texts, step, strict=False):
            error = (logits - next_logits(model, torch.tensor([row]), None)[0]).abs().max()
            check_bound("decoding: beside newcomers vs alone, float32", error, 1e-5)


@torch.no_grad()
def test_padded_rows_have_the_logits_they_have_alone(
    model: Llama, check_bound: Callable[[str, float, float], None]
) -> None:
    tokens, padding = pad_left(PROMPTS, torch.device("cpu"))
    batched = next_logits(model, tokens, new_cache(model, len(PROMPTS), 30, padding))
    for prompt, logits in zip(PROMPTS, batched, strict=True):
        error = (logits - next_logits(model, torch.tensor([prompt]), None)[0]).abs().max()
        check_bound("decoding: left-padded vs alone, float32", error, 1e-5)


def test_the_batch_stays_full_while_prompts_wait(model: Llama) -> None:
    """Rows of each forward pass: arrivals, or all that run; a place is filled before the next step."""
    rows: list[tuple[int, int]] = []
    handle = model.tok_embeddings.register_forward_hook(lambda _, inputs, __: rows.append(tuple(inputs[0].shape)))
    prompts, limits = [[1, 2], [3, 4], [5, 6], [7, 8]], [3, 2, 2, 3]
    finished = [i for i, _ in generate_many(model, prompts, batch_size=2, max_new_tokens=limits)]
    handle.remove()
    assert rows == [(2, 2), (2, 1), (1, 2), (2, 1), (1, 2), (1, 1), (1, 1)]
    assert sorted(finished) == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [2, 10])
def test_a_full_cache_makes_room(model: Llama, limit: int) -> None:
    """The third prompt joins behind `limit` − 1 columns of the first and needs every column of the cache for itself."""
    prompts, limits = [[1] * 10, [2] * 10, [3] * 10], [20, limit, 20]
    answers = in_order(generate_many(model, prompts, batch_size=2, max_new_tokens=limits))
    assert list(answers) == [list(generate(model, p, max_new_tokens=n)) for p, n in zip(prompts, limits, strict=True)]


def test_columns_that_nobody_needs_are_dropped(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the queue, attention covers less than twice the longest running row and its next token."""
    import llama.decoding.batched as batched

    columns = []
    monkeypatch.setattr(batched, "next_logits", lambda *args: (next_logits(*args), columns.append(args[2].length))[0])
    limits = [4, 6] + [6] * 12 + [50]
    dict(generate_many(model, [[1, 2]] * 15, batch_size=2, max_new_tokens=limits, stop_ids=[]))
    assert max(columns[:-50]) <= 2 * (2 + 5)


def test_memory_is_that_of_the_batch(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache of batch_size rows, as long as the longest text without its last token, for any number of prompts."""
    import llama.decoding.batched as batched

    caches = []
    monkeypatch.setattr(batched, "new_cache", lambda *args: caches.append(new_cache(*args)) or caches[-1])
    assert len(list(generate_many(model, PROMPTS, batch_size=2, max_new_tokens=LIMITS))) == len(PROMPTS)
    assert [tuple(cache.keys.shape) for cache in caches] == [(2, 2, 2, 62, 8)]


def test_answers_come_as_they_are_complete(model: Llama) -> None:
    """The short answer first; an iterator that is left early has not begun the prompts that still wait."""
    read = []
    handle = model.tok_embeddings.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    answers = generate_many(model, [[1] * 3, [1] * 4, [1] * 5], batch_size=2, max_new_tokens=[9, 2, 2])
    assert read == []
    assert next(answers)[0] == 1
    assert next(answers)[0] == 2
    handle.remove()
    assert read == [4, 1, 5, 1]


def test_in_order_waits_for_the_first() -> None:
    taken = []
    pairs = ((taken.append(i), (i, [i]))[1] for i in (2, 0, 1, 3))
    ordered = in_order(pairs)
    assert next(ordered) == [0]
    assert taken == [2, 0]
    assert list(ordered) == [[1], [2], [3]]


def test_gradients_stay_off_and_the_mode_outside_is_kept(model: Llama) -> None:
    answers = generate_many(model, PROMPTS, batch_size=2, max_new_tokens=2)
    next(answers)
    assert torch.is_grad_enabled()
    assert len(list(answers)) == len(PROMPTS) - 1


def test_penalty_is_each_rows_own(model: Llama) -> None:
    """A penalty beyond all measure forbids every repetition."""
    answers = generate_batch(model, PROMPTS, max_new_tokens=LIMITS, repetition_penalty=1e6)
    for prompt, answer, limit in zip(PROMPTS, answers, LIMITS, strict=True):
        if len(set(prompt)) + limit <= 61:
            assert len(set(answer)) == limit
            assert not set(answer) & set(prompt)


def test_impossible_requests_fail_at_the_call(model: Llama) -> None:
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate_many(model, [[1], []], batch_size=2, max_new_tokens=1)  # not even iterated
    with pytest.raises(ValueError, match="prompt 1 has 60 tokens; with 5 new ones"):
        generate_many(model, [[1], [1] * 60], batch_size=2, max_new_tokens=[50, 5])
    with pytest.raises(ValueError, match="batch_size = 0 must be at least 1"):
        generate_many(model, [[1]], batch_size=0, max_new_tokens=1)
    with pytest.raises(ValueError, match="1 generators for 2 prompts"):
        generate_batch(model, [[1], [2]], max_new_tokens=1, generators=[None])
    with pytest.raises(ValueError, match="3 max_new_tokens for 2 prompts"):
        generate_batch(model, [[1], [2]], max_new_tokens=[1, 2, 3])
    assert generate_batch(model, [], max_new_tokens=1) == []


def test_logits_that_are_not_finite_are_refused() -> None:
    model = tiny_llama(3)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        generate_batch(model, PROMPTS, max_new_tokens=3)


def test_bfloat16_generates() -> None:
    answers = generate_batch(tiny_llama(4).to(torch.bfloat16), PROMPTS, max_new_tokens=LIMITS)
    assert list(map(len, answers)) == LIMITS
