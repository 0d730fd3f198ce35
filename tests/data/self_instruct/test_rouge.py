"""data.self_instruct.rouge: by hand, and the bit-parallel pool against the table."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.self_instruct.rouge import WORD_BITS, RougeIndex, most_similar, rouge_l_reference, rouge_tokens

WORDS = ["a", "b", "c", "the", "fever", "7"]
texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
long_texts = st.lists(st.sampled_from(WORDS[:3]), min_size=WORD_BITS - 2, max_size=3 * WORD_BITS + 2).map(" ".join)


def reference(text: str, pool: list[str]) -> list[float]:
    return [rouge_l_reference(rouge_tokens(text), rouge_tokens(other)) for other in pool]


def test_by_hand():
    # L = 3 (the, on, mat), p = 3/4, r = 3/6
    a, b = rouge_tokens("The cat sat on the mat"), rouge_tokens("the dog on mat")
    assert rouge_l_reference(a, b) == 2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6)
    assert rouge_l_reference(["x"], ["x"]) == 1
    assert rouge_l_reference(["x", "y"], ["y", "x"]) == 0.5
    assert rouge_l_reference(["x"], ["y"]) == rouge_l_reference([], ["y"]) == rouge_l_reference([], []) == 0


def test_only_ascii_letters_and_digits_make_tokens():
    assert rouge_tokens("  Ärzte: 37.5 °C — e-mail\n\tme!") == ["rzte", "37", "5", "c", "e", "mail", "me"]
    assert rouge_tokens("日本語 …") == []
    assert rouge_tokens("K") == ["k"]  # the Kelvin sign is a k in lower case


@settings(deadline=None)  # a busy machine is no error
@given(texts, st.lists(texts, max_size=8))
def test_the_pool_gives_the_tables_f_to_the_last_bit(text, pool):
    assert RougeIndex(pool).scores(text).tolist() == reference(text, pool)


@settings(deadline=None, max_examples=50)
@given(st.one_of(texts, long_texts), st.lists(st.one_of(texts, long_texts), min_size=1, max_size=3))
def test_texts_longer_than_a_machine_word_carry_into_the_next(text, pool):
    assert RougeIndex(pool).scores(text).tolist() == reference(text, pool)


@pytest.mark.parametrize("n", [63, 64, 65, 127, 128, 129, 200])
def test_a_carry_runs_through_whole_words(n):
    pool = [" ".join(["a"] * n), " ".join(["a"] * (n - 1) + ["b"]), " ".join(["b"] + ["a"] * (n - 1))]
    for text in ("a", "b", "a b", "b a", pool[0], pool[1], pool[2]):
        assert RougeIndex(pool).scores(text).tolist() == reference(text, pool)


def test_random_texts_of_all_lengths_in_one_growing_pool():
    chance = random.Random(0)
    words = [f"w{n}" for n in range(30)]
    pool = RougeIndex()
    added: list[str] = []
    for length in [*range(40), *range(60, 70), 130, 200, 5]:
        text = " ".join(chance.choices(words, k=length))
        assert pool.scores(text).tolist() == reference(text, added)
        pool.add(text)
        added.append(text)
    assert len(pool) == len(added)


def test_an_empty_pool_has_no_scores():
    assert RougeIndex().scores("a b").shape == (0,)
    assert most_similar(np.array([]), 10) == []


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=30), st.integers(0, 12))
def test_the_most_similar_are_the_largest_and_of_equals_the_earlier(scores, n):
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n]
    assert most_similar(np.array(scores, dtype=np.float64), n) == expected
