"""Does a model that errs prefer a letter? What it predicted beside what was right, in one run.

The key is seldom even, and a good model follows it, so predicted letters alone prove nothing. A wrong answer is free of
the key: under H₀, "when it errs, each of the n − 1 wrong letters is equally likely", and with

    O_l    wrong answers that were l            E_l = Σ_{wrong, answer ≠ l} 1/(n − 1)

    T = Σ_l (O_l − E_l)² / E_l                  p = (1 + #{T* ≥ T}) / (1 + M)

where T* are M draws of the wrong letters from H₀. That is Pearson's statistic with its law drawn instead of taken from
a χ² table, which is wrong for cells of under five, and here at any n, since each question has its own wrong letters.
Counting the observed T among the draws keeps p valid for any M (Phipson and Smyth 2010, arXiv 1603.05766). What the
exam's authors do with their wrong options (numbers in rising order) is not in H₀: a small p is a reason to rotate.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.result import Result
from evaluation.statistics import shown_p

NONE = "none"
"""What a question without an acceptable answer counts under."""
NO_OPTION = "no option"
"""What a letter that the question does not have counts under: the I of "I think"."""
DRAWS = 10_000


@dataclass(frozen=True)
class LetterHistogram:
    """How often each letter was predicted, and how often it was right.

    Attributes:
        predicted, answers: letter -> count, letters in the order shown.
        no_option: predictions of a letter that the question does not have.
        unanswered: questions without an acceptable answer.
        p_value: of "when it errs, each wrong letter is equally likely"; None without a wrong answer that had a choice.
    """

    predicted: dict[str, int]
    answers: dict[str, int]
    no_option: int
    unanswered: int
    p_value: float | None


def letter_histogram(results: Sequence[Result], *, draws: int = DRAWS, seed: int = 0) -> LetterHistogram:
    """Count letters, and test the wrong ones for a preference; see above.

    >>> from data.exams import Question
    >>> question = Question("1", "Which?", dict(zip("ABCD", "wxyz")), "A")
    >>> results = [Result.said(question, letter, ()) for letter in "ADDDDDDDDB"]
    >>> histogram = letter_histogram(results)
    >>> histogram.predicted, histogram.answers
    ({'A': 1, 'B': 1, 'C': 0, 'D': 8}, {'A': 10, 'B': 0, 'C': 0, 'D': 0})
    >>> histogram.p_value < 0.01
    True
    """
    letters = sorted({letter for result in results for letter in result.letters})
    predicted = Counter(result.predicted for result in results if result.predicted in result.letters)
    answers = Counter(result.answer for result in results)
    unanswered = sum(result.predicted is None for result in results)
    return LetterHistogram(
        predicted={letter: predicted[letter] for letter in letters},
        answers={letter: answers[letter] for letter in letters},
        no_option=len(results) - predicted.total() - unanswered,
        unanswered=unanswered,
        p_value=_wrong_letters_p(results, draws, seed),
    )


def confusion(results: Sequence[Result]) -> dict[str, dict[str, int]]:
    """Right letter -> predicted letter, or "none" -> number of questions; only what occurred, in alphabetical order."""
    table: dict[str, Counter[str]] = {}
    for result in results:
        table.setdefault(result.answer, Counter())[result.predicted or NONE] += 1
    return {
        answer: {letter: row[letter] for letter in sorted(row, key=lambda letter: (letter == NONE, letter))}
        for answer, row in sorted(table.items())
    }


def letter_histogram_line(results: Sequence[Result]) -> str:
    """The histogram as one sentence.

    >>> from data.exams import Question
    >>> question = Question("1", "Which?", dict(zip("ABC", "xyz")), "A")
    >>> letter_histogram_line([Result.said(question, letter, ()) for letter in ["A", "C", None]])
    'letters predicted (right): A 1 (3), B 0 (0), C 1 (0), none 1; wrong letters even? p = 1.000'
    """
    histogram = letter_histogram(results)
    cells = [f"{letter} {histogram.predicted[letter]} ({n})" for letter, n in histogram.answers.items()]
    if histogram.no_option:
        cells.append(f"{NO_OPTION} {histogram.no_option}")
    if histogram.unanswered:
        cells.append(f"{NONE} {histogram.unanswered}")
    tested = "" if histogram.p_value is None else f"; wrong letters even? p {shown_p(histogram.p_value)}"
    return f"letters predicted (right): {', '.join(cells)}{tested}"


# --- Parts ---


def _wrong_letters_p(results: Sequence[Result], draws: int, seed: int) -> float | None:
    wrong = [
        (result.predicted, [letter for letter in result.letters if letter != result.answer])
        for result in results
        if not result.correct and result.predicted in result.letters and len(result.letters) > 2
    ]
    if not wrong:
        return None
    letters = sorted({letter for _, others in wrong for letter in others})
    place = {letter: i for i, letter in enumerate(letters)}
    expected = np.zeros(len(letters))
    for _, others in wrong:
        for letter in others:
            expected[place[letter]] += 1 / len(others)
    # Questions with the same wrong letters are drawn together: their counts are multinomial.
    kinds = Counter(tuple(others) for _, others in wrong)
    draw = np.random.default_rng(seed)
    counts = np.zeros((draws, len(letters)), dtype=np.int64)
    for kind, n in kinds.items():
        shares = np.full(len(kind), 1 / len(kind))
        counts[:, [place[letter] for letter in kind]] += draw.multinomial(n, shares, size=draws)
    observed = np.array([sum(predicted == letter for predicted, _ in wrong) for letter in letters])
    statistic = ((observed - expected) ** 2 / expected).sum()
    drawn = ((counts - expected) ** 2 / expected).sum(axis=1)
    return float((1 + np.count_nonzero(drawn >= statistic * (1 - 1e-12))) / (1 + draws))  # equals, but for rounding
