"""Intervals by resampling: of an accuracy, of the difference between two models, of a mean over several seeds.

The percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13): draw n of the n
questions with replacement, compute the figure again, B times; the interval is what the middle 95 % of the B figures
span. A verdict is right or wrong, so the draws need not be made one by one, for their counts have a known law:

    accuracy      k right of n               k* ~ Binomial(n, k/n)                        figure k*/n
    difference    b gained, c lost of n      (b*, c*, ·) ~ Multinomial(n; b/n, c/n, ·)    figure (b* − c*)/n

The first is there to be set beside Wilson's interval, which is better at small n: when all n answers are right every
draw is all right, and the bootstrap's interval is a point. The second is paired: a question is drawn with both
models' verdicts, so that its difficulty, which they share, cancels. Where nothing was lost its low end cannot fall
below 0: of so few changes McNemar's exact test says more.

Several seeds of one model make a table of verdicts v (S seeds × Q questions), and both its rows and its columns are
samples: other seeds would have given other weights, other exams other questions. Every seed answered the *same*
questions, so the two are crossed, not nested, and are drawn independently (the pigeonhole bootstrap: A. B. Owen,
Annals of Applied Statistics 1 (2007), 386-411):

    figure = 1/(S·Q) Σ_s Σ_q w_s·u_q·v_sq,    w ~ Multinomial(S; 1/S, ...),  u ~ Multinomial(Q; 1/Q, ...)

Drawing questions anew within each seed would average their difficulty away, and the intervals are too narrow. This one
errs to the wide side in what is due to chance at each single verdict, and to the narrow side in the seeds: of S seeds
it sees (S − 1)/S of their variance, two thirds at S = 3, and nothing at S = 1. In simulated studies of 324 questions
its 95 % held the truth in 97 to 99 % where three or five seeds differed by two points or less, in 90 and 92 % where
they differed by five; the other one in 87 to 94 %, and in 85 and 86 % (docs/evaluation.md).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics import check_counts, normal_quantile

RESAMPLES = 10_000
"""From one seed of the resampling to another an end of a 95 % interval then moves by 0.7 % of the interval's width:
√(0.025 · 0.975 / B) / φ(1.96) standard deviations, of 3.92."""
LARGEST_TABLE = 2**22
"""Draws held at a time, 32 MB of them."""

Verdicts = Sequence[Sequence[bool]] | NDArray[np.bool_]
"""(S, Q): whether the model of each seed answered each question right."""


def bootstrap_interval(
    correct: int, n: int, confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Interval for the accuracy behind `correct` right answers of n.

    Raises:
        ValueError: not 0 ≤ correct ≤ n with n ≥ 1, a confidence outside (0, 1), or no resamples.

    >>> bootstrap_interval(30, 100)  # Wilson's: 0.219 to 0.396
    (0.21, 0.39)
    """
    check_counts(correct, n)
    draws = _generator(resamples, seed).binomial(n, correct / n, size=resamples)
    return _middle(draws / n, confidence)


def paired_bootstrap_interval(
    gained: int, lost: int, n: int, confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Interval for accuracy after − accuracy before, of two models on the same n questions.

    Args:
        gained, lost: questions right only after, and right only before.

    Raises:
        ValueError: counts that are negative or above n, a confidence outside (0, 1), or no resamples.

    >>> paired_bootstrap_interval(20, 8, 100)  # 12 points better, and surely better
    (0.02, 0.22)
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"gained = {gained} and lost = {lost} must not be negative")
    check_counts(gained + lost, n)
    shares = [gained / n, lost / n, (n - gained - lost) / n]
    draws = _generator(resamples, seed).multinomial(n, shares, size=resamples)
    return _middle((draws[:, 0] - draws[:, 1]) / n, confidence)


def seeds_interval(
    verdicts: Verdicts, confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Mean accuracy over seeds, and the interval that has both seeds and questions for samples.

    Args:
        verdicts: (S, Q): whether the model of each seed answered each question right, the questions in one order.

    Returns:
        (mean, low, high).

    Raises:
        ValueError: no seeds or questions, seeds with other numbers of questions, a confidence outside (0, 1), or no
            resamples.

    >>> mean, low, high = seeds_interval([[True, False] * 50, [True, True] * 50, [True, False] * 50])
    >>> round(mean, 3), round(low, 2), round(high, 2)
    (0.667, 0.43, 1.0)
    """
    return _crossed(_table(verdicts), confidence, resamples, seed)


def difference_interval(
    after: Verdicts, before: Verdicts, confidence: float = 0.95, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Mean accuracy of one model over seeds less that of another, as `seeds_interval` does it, paired.

    The s-th seeds of both are drawn together, and every question with all of its verdicts: what a seed has in common
    (order of the rows, which were held out) and how hard a question is cancel.

    Args:
        after, before: (S, Q) each, the questions in one order; or (1, Q) for a model that has no seeds, such as a base.

    Returns:
        (mean difference, low, high).

    Raises:
        ValueError: as `seeds_interval`; or tables of other shapes.

    >>> before, after = [[True, False] * 50] * 3, [[True, True] * 40 + [True, False] * 10] * 3
    >>> change, low, high = difference_interval(after, before)
    >>> round(change, 3), round(low, 1), round(high, 1)
    (0.4, 0.3, 0.5)
    """
    tables = _table(after), _table(before)
    (seeds, questions), (other_seeds, other_questions) = (table.shape for table in tables)
    if questions != other_questions or (seeds != other_seeds and 1 not in (seeds, other_seeds)):
        raise ValueError(
            f"{seeds} seeds of {questions} questions against {other_seeds} of {other_questions}: a paired difference "
            "needs the same seeds (or one run for all of them) and the same questions"
        )
    return _crossed(tables[0] - tables[1], confidence, resamples, seed)


# --- Parts ---


def _table(verdicts: Verdicts) -> NDArray[np.int64]:
    """The verdicts as numbers, (S, Q)."""
    rows = [list(row) for row in verdicts]
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        lengths = ", ".join(str(len(row)) for row in rows) or "none"
        raise ValueError(
            f"verdicts per seed: {lengths}; every seed must have answered the same questions, at least one"
        )
    return np.array(rows, dtype=np.int64)


def _crossed(table: NDArray[np.int64], confidence: float, resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean of a table (S, Q), and the interval from drawing its rows and its columns."""
    n_seeds, n_questions = table.shape
    draw = _generator(resamples, seed)
    figures = []
    for start in range(0, resamples, chunk := max(1, LARGEST_TABLE // n_questions)):
        size = min(chunk, resamples - start)
        seeds = draw.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=size)  # (B, S)
        questions = draw.multinomial(n_questions, np.full(n_questions, 1 / n_questions), size=size)  # (B, Q)
        figures.append(((seeds @ table) * questions).sum(axis=1) / table.size)
    low, high = _middle(np.concatenate(figures), confidence)
    return float(table.mean()), low, high


def _generator(resamples: int, seed: int) -> np.random.Generator:
    if resamples < 1:
        raise ValueError(f"resamples = {resamples} must be at least 1")
    return np.random.default_rng(seed)


def _middle(figures: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """The ends of the figures' middle share; figures that occurred, not points between two of them."""
    normal_quantile(confidence)  # checks it
    tail = (1 - confidence) / 2
    low, high = np.quantile(figures, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)
