import math

import pytest

from data.exams import Question
from evaluation import Result

QUESTION = Question("1", "Which?", {"A": "x", "B": "y", "C": "z"}, "A", step="step2", seen=True)


def test_a_scored_result_predicts_the_first_of_the_highest() -> None:
    result = Result.scored(QUESTION, {"A": -2.0, "B": -1.5, "C": -1.5})
    assert (result.id, result.step, result.seen, result.answer) == ("1", "step2", True, "A")
    assert result.letters == ("A", "B", "C")
    assert (result.predicted, result.tied, result.correct, result.margin) == ("B", True, False, -0.5)


def test_probabilities_are_a_softmax_over_the_options() -> None:
    scores = {"A": math.log(0.1), "B": math.log(0.3), "C": -1e9}
    assert Result.scored(QUESTION, scores).probabilities == pytest.approx({"A": 0.25, "B": 0.75, "C": 0.0})
    far = Result.scored(QUESTION, {"A": -2000.0, "B": -1000.0, "C": -3000.0})
    assert far.probabilities == {"A": 0.0, "B": 1.0, "C": 0.0}


def test_what_was_said_has_no_scores() -> None:
    result = Result.said(QUESTION, "A", ("Hm.", "A: x"))
    assert result.correct and not result.tied
    assert (result.margin, result.probabilities, result.scores) == (None, {}, {})


def test_no_answer_is_wrong() -> None:
    assert not Result.said(QUESTION, None, ("Hm.",)).correct


def test_a_letter_that_is_no_option_is_wrong() -> None:
    result = Result.said(QUESTION, "I", ("I think",), accident=True)
    assert not result.correct and not result.tied and result.accident
