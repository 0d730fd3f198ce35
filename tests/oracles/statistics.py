"""Wilson's interval, McNemar's test and the bootstraps from their definitions, without closed forms. NumPy float64."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np


def wilson_interval(correct: int, n: int, z: float) -> tuple[float, float]:
    """The two p at which |p̂ − p| = z·√(p(1−p)/n): roots of (n + z²)p² − (2np̂ + z²)p + np̂² = 0."""
    share = correct / n
    low, high = np.sort(np.roots([n + z * z, -(2 * n * share + z * z), n * share * share]).real)
    return float(low), float(high)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Of all 2^(gained+lost) ways in which fair coins could fall, the share at least as uneven as the one seen."""
    n = gained + lost
    outcomes = np.arange(2**n)
    heads = np.zeros(2**n, dtype=np.int64)
    for coin in range(n):
        heads += (outcomes >> coin) & 1
    return float(np.mean(np.abs(2 * heads - n) >= abs(gained - lost)))


def chance_level(option_counts: list[int], *, trials: int, seed: int) -> tuple[float, float]:
    """Accuracy of guessing, by guessing; and the standard error of that estimate."""
    draws = np.random.default_rng(seed)
    counts = np.array(option_counts)
    right = draws.integers(0, counts, size=(trials, len(counts))) == 0
    per_trial = right.mean(axis=1)
    return float(per_trial.mean()), float(per_trial.std() / np.sqrt(trials))


def resampled_means(values: list[float], *, resamples: int, seed: int) -> np.ndarray:
    """Means of so many samples of the values, each drawn value by value with replacement."""
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return np.asarray(values, dtype=np.float64)[draws].mean(axis=1)


def crossed_means(table: list[list[bool]]) -> Counter[Fraction]:
    """Of every way to draw as many rows, and as many columns, with replacement: the mean, and how many ways have it."""
    means: Counter[Fraction] = Counter()
    n_rows, n_columns = len(table), len(table[0])
    for rows in itertools.product(range(n_rows), repeat=n_rows):
        for columns in itertools.product(range(n_columns), repeat=n_columns):
            right = sum(table[row][column] for row in rows for column in columns)
            means[Fraction(right, n_rows * n_columns)] += 1
    return means


def wrong_letter_patterns(questions: list[tuple[str, str]]) -> Counter[tuple[str, ...]]:
    """For questions wrongly answered, (letters of the options, right letter): every way to be wrong on all of them."""
    return Counter(
        itertools.product(*([letter for letter in letters if letter != right] for letters, right in questions))
    )
