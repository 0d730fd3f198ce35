import pytest
from exam_results import FIVE, FOUR, questions, said
from hypothesis import given
from hypothesis import strategies as st

from data.exams import Question
from evaluation.bias import RotationBias, rotated
from evaluation.result import Result


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
    assert bias.chosen == {"A": 7, "B": 7, "C": 7, "D": 7} and bias.fair == dict.fromkeys("ABCD", 7.0)
    assert {found.correct for found in bias.accuracies} == {bias.stable_right}

    bias = RotationBias.of([[said(rotated(question, k), "A") for question in exam] for k in range(4)])
    assert bias.stable == bias.stable_right == 0
    assert bias.chosen == {"A": 28, "B": 0, "C": 0, "D": 0} and bias.fair["A"] == 7
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
