"""data.self_instruct.filters: each filter on both of its sides."""

import string

import pytest

from data import Record
from data.self_instruct import load_seeds
from data.self_instruct.filters import NOT_TEXT, REASONS, reason_to_drop


def reason(instruction: str, input: str = "", output: str = "x") -> str | None:
    return reason_to_drop(Record(instruction, input, output))


def words(n: int) -> str:
    return " ".join(["word"] * n)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("", "short"),
        (words(3), "short"),
        (words(4), None),
        (words(150), None),
        (words(151), "long"),
        ("Write a program that adds", "program"),
        ("Write a programme that adds", "program"),
        ("write a program that adds", None),
        ("Please, Write a program", None),
        ("été comme hiver, why?", "not ASCII"),
        ("Décrivez un hiver ici", None),
        ("日 本 語 で", "not ASCII"),
        ("What is 日本語 in English?", None),
    ],
)
def test_each_side_of_a_filter(instruction, expected):
    assert reason(instruction) == expected


@pytest.mark.parametrize("mark", string.punctuation)
def test_a_leading_punctuation_mark(mark):
    assert reason(f"{mark}Name a fruit, please") == "punctuation"
    assert reason(f"Name a fruit, please{mark}") is None


@pytest.mark.parametrize("word", NOT_TEXT)
def test_a_word_that_needs_more_than_text(word):
    assert reason(f"Please take the {word} now") == "not text"
    assert reason(f"Please take the {word.upper()}, now") == "not text"
    assert reason(f"Please take the {word}xy now") is None
    assert reason(f"Please take the xy{word} now") is None
    assert reason(words(4), word, word) is None  # input and output are not asked


def test_the_words_are_stanfords_eighteen():
    assert len(set(NOT_TEXT)) == 18


def test_what_could_not_be_trained_on():
    assert reason(words(4), output="") == "no output"
    assert reason(words(4), output="a\0b") == reason(words(4), "\ud800") == reason(words(4) + "\0") == "unreadable"


def test_the_first_reason_counts():
    assert reason("Draw it") == "short"
    assert reason("!Draw it for me") == "not text"


def test_every_reason_has_a_meaning():
    assert {"short", "long", "not text", "program", "punctuation", "not ASCII", "no output"} <= REASONS.keys()


def test_most_real_seeds_would_pass(real_data):
    seeds = load_seeds(real_data / "alpaca" / "seed_tasks.jsonl")
    reasons = [reason_to_drop(seed) for seed in seeds]
    # "Explain human's behavior.", "Complete the lyrics.", "Write a program to compute ...", and "Music" as a category.
    assert {name: reasons.count(name) for name in set(reasons)} == {None: 171, "short": 2, "program": 1, "not text": 1}
