from collections import Counter

import numpy as np
import pytest
from exam_results import FIVE, FOUR, questions, said
from oracles import statistics as oracle

from data.exams import Question
from evaluation.letters import NONE, confusion, letter_histogram, letter_histogram_line


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
