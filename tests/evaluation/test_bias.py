import io
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import statistics as oracle
from rich.console import Console

from data.exams import Question
from evaluation.bias import (
    NONE,
    LetterHistogram,
    RotationBias,
    confusion,
    letter_histogram,
    letter_histogram_line,
    rotated,
)
from evaluation.bias_tables import confusion_table, letters_table, rotation_table
from evaluation.result import Result
from evaluation.statistics import Accuracy

FOUR = Question("4", "Which?", dict(zip("ABCD", ("w", "x", "y", "z"), strict=True)), "B")
FIVE = Question("5", "Which?", dict(zip("ABCDE", ("v", "w", "x", "y", "z"), strict=True)), "A")


def said(question: Question, letter: str | None) -> Result:
    return Result.said(question, letter, ())


def questions(n: int, letters: str = "ABCD", seed: int = 0) -> list[Question]:
    draw = random.Random(seed)
    options = {letter: f"text {letter}" for letter in letters}
    return [Question(str(i), "Which?", options, draw.choice(letters)) for i in range(n)]


# --- Rotations ---


@given(st.sampled_from([FOUR, FIVE]), st.integers(0, 12))
def test_a_rotation_moves_texts_and_answer_and_nothing_else(question: Question, k: int) -> None:
    turned = rotated(question, k)
    assert list(turned.options) == list(question.options)
    assert sorted(turned.options.values()) == sorted(question.options.values())
    assert turned.options[turned.answer] == question.options[question.answer]
    assert (turned.id, turned.text) == (question.id, question.text)
    assert (turned == question) == (k % len(question.options) == 0)
    assert rotated(turned, 1) == rotated(question, k + 1)


def test_a_reader_is_stable_and_fair_and_one_who_says_a_is_neither() -> None:
    exam = [FOUR, *questions(6)]
    exam = [Question(str(i), q.text, q.options, q.answer) for i, q in enumerate(exam)]
    letters = {"w": "w", "text C": "text C"}

    def read(question: Question) -> Result:  # always the same text: right or wrong, whatever its letter
        return said(question, next(letter for letter, text in question.options.items() if text in letters))

    bias = RotationBias.of([[read(rotated(question, k)) for question in exam] for k in range(4)])
    assert bias.stable == bias.n == 7
    assert bias.chosen == {"A": 7, "B": 7, "C": 7, "D": 7} and set(bias.preferences.values()) == {1.0}
    assert {found.correct for found in bias.accuracies} == {bias.stable_right}

    bias = RotationBias.of([[said(rotated(question, k), "A") for question in exam] for k in range(4)])
    assert bias.stable == bias.stable_right == 0
    assert bias.chosen == {"A": 28, "B": 0, "C": 0, "D": 0} and bias.preferences["A"] == 4
    # Every answer stands under A once: chance, exactly, however uneven the key.
    assert bias.accuracy == 0.25
    assert bias.accuracies[0].correct == sum(question.answer == "A" for question in exam)


def test_an_exam_of_four_and_five_options_counts_each_order_once() -> None:
    def first_text(question: Question) -> Result:
        wanted = "w" if len(question.options) == 4 else "v"
        return said(question, next(letter for letter, text in question.options.items() if text == wanted))

    bias = RotationBias.of([[first_text(rotated(q, k)) for q in (FOUR, FIVE)] for k in range(5)])
    assert [found.n for found in bias.accuracies] == [2, 2, 2, 2, 1]
    assert [found.correct for found in bias.accuracies] == [1] * 5, "FIVE's answer is its first text, FOUR's is not"
    assert bias.chosen == {"A": 2, "B": 2, "C": 2, "D": 2, "E": 1} == bias.fair
    assert (bias.stable, bias.stable_right) == (2, 1)


def test_a_question_without_an_answer_in_one_order_is_not_stable() -> None:
    rotations = [[said(rotated(FOUR, k), letter)] for k, letter in enumerate(["B", "C", None, "I"])]
    bias = RotationBias.of(rotations)
    assert (bias.stable, bias.unanswered, bias.chosen) == (0, 2, {"A": 0, "B": 1, "C": 1, "D": 0})
    assert bias.fair == dict.fromkeys("ABCD", 0.5)


@pytest.mark.parametrize(
    ("rotations", "problem"),
    [
        ([], "no results"),
        ([[]], "no results"),
        ([[said(FOUR, "A")]] * 3, "question 4 has 4 options and needs as many rotations: 3"),
        ([[said(FOUR, "A")], [said(FIVE, "A")]], "rotation 1 is not about the questions of rotation 0"),
    ],
)
def test_rotations_that_do_not_belong_together_are_refused(rotations: list[list[Result]], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RotationBias.of(rotations)


# --- Letters of one run ---


def test_letters_are_counted_as_predicted_and_as_right() -> None:
    results = [said(FOUR, "B"), said(FOUR, "A"), said(FIVE, "E"), said(FIVE, None), said(FIVE, "I")]
    histogram = letter_histogram(results)
    assert histogram.predicted == {"A": 1, "B": 1, "C": 0, "D": 0, "E": 1}
    assert histogram.answers == {"A": 3, "B": 2, "C": 0, "D": 0, "E": 0}
    assert (histogram.no_option, histogram.unanswered) == (1, 1)
    assert letter_histogram_line(results).startswith(
        "letters predicted (right): A 1 (3), B 1 (2), C 0 (0), D 0 (0), E 1 (0), no option 1, none 1; wrong letters"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        [("ABCD", "A", "D"), ("ABCD", "A", "D"), ("ABCD", "B", "D"), ("ABCDE", "C", "D")],
        [("ABC", "A", "B"), ("ABC", "B", "C"), ("ABC", "C", "A")],
        [("ABCDE", "E", "A")] * 4 + [("ABCD", "D", "A")],
    ],
)
def test_the_p_value_is_that_of_every_way_to_be_wrong(wrong: list[tuple[str, str, str]]) -> None:
    """Against all patterns of wrong letters, enumerated; each is equally likely under the hypothesis."""
    letters = sorted({letter for options, answer, _ in wrong for letter in options if letter != answer})
    expected = Counter[str]()
    for options, answer, _ in wrong:
        for letter in options:
            expected[letter] += (letter != answer) / (len(options) - 1)  # type: ignore[assignment]

    def statistic(pattern: tuple[str, ...]) -> float:
        found = Counter(pattern)
        return sum((found[letter] - expected[letter]) ** 2 / expected[letter] for letter in letters)

    observed = statistic(tuple(predicted for _, _, predicted in wrong))
    patterns = oracle.wrong_letter_patterns([(options, answer) for options, answer, _ in wrong])
    extreme = sum(ways for pattern, ways in patterns.items() if statistic(pattern) >= observed - 1e-9)
    exact = extreme / patterns.total()
    results = [
        said(Question(str(i), "Which?", {letter: f"text {letter}" for letter in options}, answer), predicted)
        for i, (options, answer, predicted) in enumerate(wrong)
    ]
    p_value = letter_histogram(results).p_value
    # A share of 10,000 draws: five standard deviations.
    assert p_value == pytest.approx(exact, abs=5 * (exact * (1 - exact) / 10_000) ** 0.5 + 1e-4)


def test_an_uneven_key_that_the_model_follows_is_no_taste_for_letters() -> None:
    """Three in four answers are A, and a model right in half: A is predicted far above a quarter, and rightly."""
    draw = np.random.default_rng(0)
    options = {letter: f"text {letter}" for letter in "ABCD"}
    exam = [Question(str(i), "Which?", options, "A" if i % 4 else "C") for i in range(400)]
    results = []
    for question in exam:
        others = [letter for letter in options if letter != question.answer]
        results.append(said(question, question.answer if draw.random() < 0.5 else str(draw.choice(others))))
    histogram = letter_histogram(results)
    assert histogram.predicted["A"] >= 150 and histogram.p_value is not None and histogram.p_value > 0.05


def test_false_alarms_come_as_often_as_promised_and_a_taste_is_found() -> None:
    """100 exams of 40 questions guessed evenly, and guessed with twice the weight on the last letter."""
    draw, alarms, found = np.random.default_rng(1), 0, 0
    exam = questions(40)
    for trial in range(100):
        for weights in ([0.25] * 4, [0.2, 0.2, 0.2, 0.4]):
            letters = draw.choice(list("ABCD"), size=40, p=weights)
            results = [said(question, str(letter)) for question, letter in zip(exam, letters, strict=True)]
            p_value = letter_histogram(results, draws=500, seed=trial).p_value
            assert p_value is not None
            if weights[0] == 0.25:
                alarms += p_value < 0.05
            else:
                found += p_value < 0.05
    # 5 of 100 at most, in the mean; four standard deviations above.
    assert alarms <= 5 + 4 * 4.75**0.5
    assert found > 3 * alarms


@pytest.mark.parametrize("letter", ["B", None, "I"])
def test_without_a_wrong_option_chosen_there_is_nothing_to_test(letter: str | None) -> None:
    assert letter_histogram([said(FOUR, letter)] * 9).p_value is None
    assert "even?" not in letter_histogram_line([said(FOUR, letter)] * 9)


def test_a_wrong_answer_of_two_had_no_choice() -> None:
    question = Question("2", "Is it?", {"A": "yes", "B": "no"}, "A")
    assert letter_histogram([said(question, "B")] * 9).p_value is None


def test_confusion_counts_predictions_by_answer() -> None:
    results = [said(FOUR, "B"), said(FOUR, "B"), said(FOUR, "D"), said(FIVE, None), said(FIVE, "A"), said(FIVE, "I")]
    assert confusion(results) == {"A": {"A": 1, "I": 1, NONE: 1}, "B": {"B": 2, "D": 1}}
    assert list(confusion(results)["A"]) == ["A", "I", NONE], "no answer comes last"


# --- Terminal ---


def test_tables_fit_80_columns_whatever_the_counts() -> None:
    letters = dict.fromkeys("ABCDEFGHIJ", 9999)
    found = Accuracy.of([True] * 99_999, [10] * 99_999)
    bias = RotationBias((found,) * 10, 99_999, 88_888, 77_777, letters, dict.fromkeys(letters, 9999.0), 66_666)
    histogram = LetterHistogram(letters, letters, no_option=9999, unanswered=9999, p_value=0.5)
    counts = {letter: {**letters, NONE: 9999} for letter in letters}
    for table, heading in (
        (rotation_table(bias), "options moved on by"),
        (letters_table(histogram), "predicted"),
        (confusion_table(counts), "answer"),
    ):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(table)
        text = console.export_text()
        assert heading in text and "…" not in text and max(map(len, text.splitlines())) <= 80
        assert text.count("9999") >= 10, "no figure is cut"


def test_letters_of_a_report_are_text_and_no_markup() -> None:
    question = Question("1", "Which?", {"[red]": "x", "[/]": "y", "C": "z"}, "C")
    console = Console(width=80, record=True, file=io.StringIO())
    results = [said(rotated(question, k), "[/]") for k in range(3)]
    console.print(confusion_table(confusion(results)), letters_table(letter_histogram(results)))
    console.print(rotation_table(RotationBias.of([[result] for result in results])))
    assert console.export_text().count("[/]") >= 3
