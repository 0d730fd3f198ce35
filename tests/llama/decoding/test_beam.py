"""Beam search against trying every answer, and against greedy decoding."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from oracles.decoding import Array, best_answers
from tiny_models import tiny_llama

from llama.decoding import beam_search, generate
from llama.model import Llama

Check = Callable[[str, float, float], None]

PROMPT = [1, 3, 2]
SMALL_VOCAB, LENGTH = 5, 4
EXHAUSTIVE = SMALL_VOCAB ** (LENGTH - 1)  # as many beams as there are unfinished answers before the last token


def log_probabilities(model: Llama) -> Callable[[Sequence[int]], Array]:
    """Float64 log-probabilities of the next token after PROMPT and an answer, uncached."""
    known: dict[tuple[int, ...], Array] = {}

    def of(answer: Sequence[int]) -> Array:
        key = tuple(answer)
        if key not in known:
            with torch.no_grad():
                logits = model(torch.tensor([PROMPT + list(key)]))[0, -1].double().numpy()
            known[key] = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        return known[key]

    return of


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("stop_ids", [set(), {4}, {0, 2}], ids=["no stop", "one stop", "two stops"])
def test_wide_beam_finds_the_best_of_all_answers(stop_ids: set[int], length_penalty: float, check_bound: Check) -> None:
    model = tiny_llama(5, vocab_size=SMALL_VOCAB)
    wanted = best_answers(log_probabilities(model), SMALL_VOCAB, LENGTH, stop_ids, length_penalty)
    found = beam_search(
        model,
        PROMPT,
        beams=EXHAUSTIVE,
        max_new_tokens=LENGTH,
        stop_ids=stop_ids,
        length_penalty=length_penalty,
    )
    assert found[0].ids == wanted[0][0]
    # Four log-probabilities with the cached logits' error of 1e-5 each, times the 4^1 that α = -1 multiplies by.
    check_bound("beam search: best score vs brute force", abs(found[0].score - wanted[0][1]), 1.6e-4)
    for got, (ids, score) in zip(found[:10], wanted, strict=False):
        assert got.ids == ids
        assert math.isclose(got.score, score, rel_tol=1e-4)


def test_one_beam_is_greedy() -> None:
    for seed in range(5):
        model = tiny_llama(seed)
        whole = list(generate(model, PROMPT, max_new_tokens=20))
        for stop_ids in ([], [whole[6]], [whole[0]]):
            greedy = list(generate(model, PROMPT, max_new_tokens=20, stop_ids=stop_ids))
            assert [h.ids for h in beam_search(model, PROMPT, beams=1, max_new_tokens=20, stop_ids=stop_ids)] == [
                greedy
            ]


def test_score_is_the_models_log_probability(check_bound: Check) -> None:
    model = tiny_llama(6)
    for hypothesis in beam_search(model, PROMPT, beams=4, max_new_tokens=8, stop_ids=[11, 30], length_penalty=0.8):
        with torch.no_grad():
            logits = model(torch.tensor([PROMPT + hypothesis.ids])).double()[0, len(PROMPT) - 1 :].log_softmax(-1)
        path = logits[range(len(hypothesis.ids)), hypothesis.ids].sum()
        # Which of the two stop ids ended a short answer is not told.
        ends = [path] if len(hypothesis.ids) == 8 else [path + logits[-1, stop] for stop in (11, 30)]
        error = min(abs(float(end) - hypothesis.log_probability) for end in ends)
        check_bound("beam search: log P(y|x) vs float64 of a forward pass", error, 8e-5)  # 8 terms, 1e-5 each
        length = len(hypothesis.ids) + (len(hypothesis.ids) < 8)
        assert math.isclose(hypothesis.score, hypothesis.log_probability / length**0.8, rel_tol=1e-12)


def test_more_beams_find_better_answers_than_greedy() -> None:
    better = 0
    for seed in range(8):
        model = tiny_llama(seed)
        greedy, wide = (
            beam_search(model, PROMPT, beams=beams, max_new_tokens=12, length_penalty=0.0)[0].score for beams in (1, 6)
        )
        better += wide > greedy + 1e-4
    assert better >= 4


@pytest.mark.parametrize("stop_ids", [(), (3, 9)])
def test_cached_equals_uncached(stop_ids: tuple[int, ...]) -> None:
    model = tiny_llama(7)
    cached, plain = (
        beam_search(model, PROMPT, beams=5, max_new_tokens=12, stop_ids=stop_ids, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert [h.ids for h in cached] == [h.ids for h in plain]
    assert len(cached) == 5


def test_answers_are_distinct_and_sorted() -> None:
    found = beam_search(tiny_llama(8), PROMPT, beams=6, max_new_tokens=10, stop_ids=[5, 6])
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    assert len({tuple(h.ids) for h in found}) == 6


def test_every_token_stops() -> None:
    model = tiny_llama(9, vocab_size=SMALL_VOCAB)
    found = beam_search(model, PROMPT, beams=3, max_new_tokens=4, stop_ids=range(SMALL_VOCAB))
    assert [h.ids for h in found] == [[], [], []]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams = 0 must be at least 1"),
        ({"length_penalty": math.nan}, "length_penalty = nan"),
        ({"max_new_tokens": 100}, "the model's window is 64"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
    ],
)
def test_impossible_requests(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(tiny_llama(0), PROMPT, **({"beams": 2, "max_new_tokens": 4} | options))  # type: ignore[arg-type]
