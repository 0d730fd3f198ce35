"""Wilson's interval and McNemar's test from their definitions, without their closed forms. NumPy float64."""

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
