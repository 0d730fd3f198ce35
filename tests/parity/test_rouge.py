"""Google's rouge_score: the same tokens, the same F to the last bit, the same ten most similar."""

import json
import random
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.self_instruct import RougeIndex, load_seeds, most_similar, rouge_l_reference, rouge_tokens

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="install the extra: parity")
tokenizers = pytest.importorskip("rouge_score.tokenizers", reason="install the extra: parity")

SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
TOKENIZER = tokenizers.DefaultTokenizer(use_stemmer=False)


def theirs(text: str, other: str) -> float:
    return float(SCORER.score(text, other)["rougeL"].fmeasure)


def instructions(real_data: Path) -> list[str]:
    rows = json.loads((real_data / "alpaca" / "alpaca_data_1k.json").read_text(encoding="utf-8"))
    seeds = load_seeds(real_data / "alpaca" / "seed_tasks.jsonl")
    return [row["instruction"] for row in rows] + [seed.instruction for seed in seeds]


@settings(deadline=None)
@given(st.text())
def test_any_text_has_the_same_tokens(text):
    assert rouge_tokens(text) == TOKENIZER.tokenize(text)


@settings(deadline=None)
@given(st.text(alphabet="ab1 .é\n", max_size=200), st.text(alphabet="ab1 .é\n", max_size=200))
def test_any_two_texts_have_the_same_f(text, other):
    assert rouge_l_reference(rouge_tokens(text), rouge_tokens(other)) == theirs(text, other)
    assert RougeIndex([other]).scores(text).tolist() == [theirs(text, other)]


@pytest.mark.parametrize("length", [1, 5, 63, 64, 65, 128, 150, 300])
def test_random_texts_of_a_length_have_the_same_f(length):
    chance = random.Random(length)
    letters = string.ascii_lowercase[:8]
    pool = [" ".join(chance.choices(letters, k=chance.randint(1, 2 * length))) for _ in range(6)]
    text = " ".join(chance.choices(letters, k=length))
    assert RougeIndex(pool).scores(text).tolist() == [theirs(text, other) for other in pool]


def test_real_instructions_have_the_same_f_mean_and_ten_most_similar(real_data):
    pool = instructions(real_data)
    index = RougeIndex(pool)
    new = random.Random(0).sample(pool, 8)
    new += ["Give three tips for staying healthy.", "What are the three primary colors?"]
    tokens = [TOKENIZER.tokenize(text) for text in pool]
    for text in new:
        expected = [rouge_scorer._score_lcs(TOKENIZER.tokenize(text), other).fmeasure for other in tokens]
        scores = index.scores(text)
        assert scores.tolist() == expected
        assert np.mean(scores) == np.mean(expected)
        # numpy's argsort, which Stanford's code calls, leaves the order of equals open: those at its end may differ.
        ten = most_similar(scores, 10)
        assert [scores[i] for i in ten] == sorted(expected, reverse=True)[:10]
        assert {i for i in ten if scores[i] > scores[ten[-1]]} == {
            i for i, f in enumerate(expected) if f > scores[ten[-1]]
        }
