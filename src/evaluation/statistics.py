"""How far an accuracy can be trusted, and whether one model is better than another.

Wilson's score interval (E. B. Wilson, JASA 22 (1927), 209-212): all p that a two-sided normal test at the level would
not reject, |p̂ − p| ≤ z·√(p(1−p)/n), solved for p:

    (p̂ + z²/2n ± z·√(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n)

It stays within [0, 1] and is sound for small n and for p̂ near 0 or 1, where p̂ ± z·√(p̂(1−p̂)/n) shrinks to a point.

McNemar's test (Psychometrika 12 (1947), 153-157) in its exact form: of the questions on which two models disagree, b
went to one and c to the other; if neither is better each is a fair coin, so

    p = min(1, 2·Σ_{i ≤ min(b,c)} C(b+c, i) / 2^(b+c))

The questions on which both are right or both are wrong say nothing about the difference. Because it is paired, this
test sees improvements that two overlapping intervals hide.

These two take the questions as a sample of all that could have been asked, and one run as the model. Intervals for
what has no formula (a difference of two models, a mean over several seeds) are in `bootstrap.py`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for the true accuracy behind `correct` right answers of n.

    Raises:
        ValueError: not 0 ≤ correct ≤ n with n ≥ 1, or a confidence outside (0, 1).

    >>> [round(bound, 3) for bound in wilson_interval(30, 100)]  # at n = 100, ten points to either side are noise
    [0.219, 0.396]
    """
    check_counts(correct, n)
    z = normal_quantile(confidence)
    accuracy = correct / n
    centre = accuracy + z * z / (2 * n)
    half_width = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n the formula gives exactly 0 and 1; rounding must not step outside.
    low = 0.0 if correct == 0 else (centre - half_width) / scale
    high = 1.0 if correct == n else (centre + half_width) / scale
    return low, high


def half_width_note(n: int, confidence: float = 0.95) -> str:
    """How far n questions leave an accuracy open: z / (2·√n), the normal interval's half width at p = 1/2, its widest.

    Wilson's is a little narrower there: 8.8 points for n = 119.

    >>> half_width_note(119)
    'n = 119: 95 % intervals reach ±9.0 points'
    """
    check_counts(0, n)
    points = 100 * normal_quantile(confidence) / (2 * math.sqrt(n))
    return f"n = {n:,}: {100 * confidence:g} % intervals reach ±{points:.1f} points"


def check_counts(correct: int, n: int) -> None:
    """Refuse what is no count of right answers: not 0 ≤ correct ≤ n with n ≥ 1."""
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} correct of {n}: the count must lie between 0 and n, and n be at least 1")


def normal_quantile(confidence: float) -> float:
    """z of a two-sided interval, 1.96 at 0.95."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence} must lie between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided p-value for `gained` questions right only afterwards and `lost` right only before.

    Raises:
        ValueError: a negative count.

    >>> mcnemar_exact(5, 1)  # 2 · (1 + 6) / 64
    0.21875
    >>> mcnemar_exact(0, 0)
    1.0
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"gained = {gained} and lost = {lost} must not be negative")
    n = gained + lost
    term = tail = 1  # C(n, 0); whole numbers up to the division, so that nothing is rounded
    for i in range(1, min(gained, lost) + 1):
        term = term * (n - i + 1) // i  # C(n, i) from C(n, i−1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def chance_level(option_counts: Iterable[int]) -> float:
    """Expected accuracy of a uniform guess, the mean of 1 / options.

    Raises:
        ValueError: no questions, or one without options.

    >>> chance_level([4, 4, 5, 5])
    0.225
    """
    shares = [1 / count if count > 0 else math.nan for count in option_counts]
    if not shares or any(map(math.isnan, shares)):
        raise ValueError("chance needs at least one question, and each at least one option")
    return math.fsum(shares) / len(shares)


def shown_p(p_value: float) -> str:
    """A p-value behind the letter p.

    >>> shown_p(0.0314), shown_p(0.0001)
    ('= 0.031', '< 0.001')
    """
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"


def shown_points(difference: float, digits: int = 1) -> str:
    """A difference of two accuracies, in per cent of the questions.

    >>> shown_points(0.3525), shown_points(-0.0125, 0)
    ('+35.2', '−1')
    """
    return f"{100 * difference:+.{digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Accuracy:
    """Right answers of n, with the 95 % interval and what guessing would give.

    >>> accuracy = Accuracy.of([True, False, True, True], [4, 4, 4, 4])
    >>> accuracy.value, round(accuracy.low, 4), round(accuracy.high, 4), accuracy.chance
    (0.75, 0.3006, 0.9544, 0.25)
    """

    correct: int
    n: int
    low: float
    high: float
    chance: float

    @property
    def value(self) -> float:
        """The share of right answers."""
        return self.correct / self.n

    @classmethod
    def of(cls, correct: Sequence[bool], option_counts: Sequence[int]) -> "Accuracy":
        """From each question's verdict and number of options."""
        low, high = wilson_interval(sum(correct), len(correct))
        return cls(sum(correct), len(correct), low, high, chance_level(option_counts))
