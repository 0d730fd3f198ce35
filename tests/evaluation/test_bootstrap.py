import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import statistics as oracle

from evaluation.bootstrap import (
    RESAMPLES,
    bootstrap_interval,
    difference_interval,
    paired_bootstrap_interval,
    seeds_interval,
)
from evaluation.statistics import wilson_interval

# The k-th of B draws is at a level that is itself random: standard deviation √(0.025·0.975/B), 0.0016 at B = 10,000.
# Five of them: no seed in a million lies further off.
LEVEL_ERROR = 5 * math.sqrt(0.025 * 0.975 / RESAMPLES)


def level_below(values: dict[Fraction, int] | np.ndarray, end: float) -> tuple[float, float]:
    """The shares of a law, or of a sample of it, that lie below an end, and at most at it."""
    if isinstance(values, np.ndarray):
        return float(np.mean(values < end - 1e-12)), float(np.mean(values <= end + 1e-12))
    total = sum(values.values())
    below = sum(ways for value, ways in values.items() if value < Fraction(end) - Fraction(1, 10**9))
    upto = sum(ways for value, ways in values.items() if value <= Fraction(end) + Fraction(1, 10**9))
    return below / total, upto / total


def assert_middle(values: dict[Fraction, int] | np.ndarray, low: float, high: float, error: float) -> None:
    """An interval's ends are the 2.5 % and 97.5 % quantiles of the values, up to an error of the level."""
    for end, level in ((low, 0.025), (high, 0.975)):
        below, upto = level_below(values, end)
        assert below <= level + error and upto >= level - error


@settings(max_examples=30)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_accuracys_interval_is_the_binomials(case: tuple[int, int]) -> None:
    correct, n = case
    law = {Fraction(k, n): math.comb(n, k) * correct**k * (n - correct) ** (n - k) for k in range(n + 1)}
    assert_middle(law, *bootstrap_interval(correct, n), LEVEL_ERROR)


def test_an_accuracys_interval_is_that_of_questions_drawn_one_by_one() -> None:
    draws = oracle.resampled_means([1.0] * 41 + [0.0] * 78, resamples=RESAMPLES, seed=1)
    assert_middle(draws, *bootstrap_interval(41, 119), 2 * LEVEL_ERROR)  # both are samples


def test_a_differences_interval_is_that_of_questions_drawn_one_by_one() -> None:
    draws = oracle.resampled_means([1.0] * 25 + [-1.0] * 9 + [0.0] * 85, resamples=RESAMPLES, seed=1)
    assert_middle(draws, *paired_bootstrap_interval(25, 9, 119), 2 * LEVEL_ERROR)


def test_at_the_edge_the_bootstrap_shrinks_to_a_point_and_wilson_does_not() -> None:
    assert bootstrap_interval(20, 20) == (1.0, 1.0)
    assert wilson_interval(20, 20)[0] < 0.85


def test_pairing_makes_a_difference_certain_that_two_intervals_leave_open() -> None:
    """60 and 50 of 100, the same 48 among both: the intervals overlap, and yet the gain is none of luck's."""
    assert wilson_interval(60, 100)[0] < wilson_interval(50, 100)[1]
    low, high = paired_bootstrap_interval(12, 2, 100)
    assert 0 < low < 0.10 < high


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 5), (12, 2), (0, 3)])
def test_a_differences_interval_holds_it_and_turns_with_it(gained: int, lost: int) -> None:
    low, high = paired_bootstrap_interval(gained, lost, 100)
    assert low <= (gained - lost) / 100 <= high
    mirrored = paired_bootstrap_interval(lost, gained, 100)
    assert mirrored == pytest.approx((-high, -low), abs=0.011)  # one question: other draws


# --- Seeds x questions ---


def test_seeds_and_questions_are_drawn_independently() -> None:
    """Every one of the 2^2 · 5^5 = 12,500 ways, counted."""
    table = [[True, True, False, True, False], [True, False, False, True, True]]
    law = oracle.crossed_means(table)
    mean, low, high = seeds_interval(table)
    assert mean == 0.6 and sum(law.values()) == 12_500
    assert_middle(law, low, high, LEVEL_ERROR)


def test_equal_seeds_leave_the_questions_alone() -> None:
    row = [True] * 41 + [False] * 78
    for seeds in (1, 4):
        mean, low, high = seeds_interval([row] * seeds)
        assert mean == pytest.approx(41 / 119, abs=1e-15)
        assert (low, high) == pytest.approx(bootstrap_interval(41, 119), abs=1.01 / 119)  # one question: other draws


def test_questions_that_all_answer_alike_leave_the_seeds_alone() -> None:
    _, low, high = seeds_interval([[True] * 50, [False] * 50, [True] * 50])
    assert (low, high) == (0.0, 1.0)  # one resample in 27 is the wrong seed thrice, above 2.5 %


def test_the_interval_keeps_its_promise_where_one_that_draws_questions_anew_does_not() -> None:
    """Three seeds of equal skill; questions of very different difficulty, as exams have them."""
    draw, crossed, anew, trials = np.random.default_rng(0), 0, 0, 200
    for trial in range(trials):
        chances = draw.choice([0.05, 0.95], size=(1, 100))  # the true accuracy is 0.5
        verdicts = draw.random((3, 100)) < chances
        _, low, high = seeds_interval(verdicts, resamples=500, seed=trial)
        crossed += low <= 0.5 <= high
        low, high = bootstrap_interval(int(verdicts.sum()), verdicts.size, resamples=500, seed=trial)
        anew += low <= 0.5 <= high
    # A rate of 0.95 has a standard deviation of 0.015 over 200 trials; three of them.
    assert crossed / trials > 0.95 - 0.046 > 0.80 > anew / trials


def test_a_difference_of_two_single_runs_is_the_paired_bootstraps() -> None:
    after = [[True] * 25 + [False] * 9 + [True] * 85]
    before = [[False] * 25 + [True] * 9 + [True] * 85]
    change, low, high = difference_interval(after, before)
    assert change == pytest.approx(16 / 119, abs=1e-15)
    assert (low, high) == pytest.approx(paired_bootstrap_interval(25, 9, 119), abs=1.01 / 119)  # one question


def test_a_difference_over_seeds_is_that_of_every_way_to_draw() -> None:
    after = [[True, True, False, True, True], [True, False, True, True, True]]
    before = [[True, False, False, True, False], [True, False, False, True, True]]
    gains = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(after, before, strict=True)]
    change, low, high = difference_interval(after, before)
    assert change == pytest.approx(0.3, abs=1e-15)
    assert_middle(oracle.crossed_means(gains), low, high, LEVEL_ERROR)


def test_one_run_of_a_base_is_compared_with_every_seed() -> None:
    draw = np.random.default_rng(0)
    base, tuned = draw.random((1, 60)) < 0.4, draw.random((3, 60)) < 0.7
    assert difference_interval(tuned, base) == difference_interval(tuned, base.repeat(3, axis=0))
    change, low, high = difference_interval(base, tuned)
    assert low <= change <= high < 0


def test_what_seeds_and_questions_share_cancels_in_a_difference() -> None:
    """Two models that differ by one question in twenty, on an exam where questions and seeds differ by far more."""
    before = np.random.default_rng(0).random((3, 200)) < np.array([[0.2], [0.5], [0.8]])
    after = before.copy()
    after[:, :10] = True
    _, low, high = difference_interval(after, before)
    assert low > 0 and high - low < 0.06
    _, low, high = seeds_interval(after)
    assert high - low > 0.4


def test_a_table_too_large_to_draw_at_once_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = np.random.default_rng(0).random((3, 50)) < 0.5
    whole = seeds_interval(verdicts)
    monkeypatch.setattr("evaluation.bootstrap.LARGEST_TABLE", 50 * 999)
    assert seeds_interval(verdicts) == pytest.approx(whole, abs=0.02)  # other draws; a question is 0.02


def test_the_same_seed_gives_the_same_interval_and_another_nearly_so() -> None:
    for interval in (
        lambda seed: bootstrap_interval(120, 324, seed=seed),
        lambda seed: paired_bootstrap_interval(40, 30, 324, seed=seed),
        lambda seed: seeds_interval([[True, False, False] * 108] * 3, seed=seed),
    ):
        assert interval(7) == interval(7)
        # 0.7 % of a width of 10 points, and draws are whole questions of 0.3 points.
        assert interval(7) == pytest.approx(interval(8), abs=0.0065)


# --- Refusals ---


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: bootstrap_interval(3, 2), "3 correct of 2"),
        (lambda: bootstrap_interval(0, 0), "0 correct of 0"),
        (lambda: bootstrap_interval(1, 2, 95), r"confidence = 95 .*0\.95"),
        (lambda: bootstrap_interval(1, 2, resamples=0), "resamples = 0"),
        (lambda: paired_bootstrap_interval(-1, 0, 5), "gained = -1"),
        (lambda: paired_bootstrap_interval(4, 2, 5), "6 correct of 5"),
        (lambda: seeds_interval([]), "verdicts per seed: none"),
        (lambda: seeds_interval([[], []]), "verdicts per seed: 0, 0"),
        (lambda: seeds_interval([[True], [True, False]]), "verdicts per seed: 1, 2; every seed must have answered"),
        (lambda: seeds_interval([[True]], 0), "confidence = 0 "),
        (lambda: difference_interval([[True]] * 3, [[True]] * 2), "3 seeds of 1 questions against 2 of 1"),
        (lambda: difference_interval([[True]], [[True] * 2]), "1 seeds of 1 questions against 1 of 2"),
        (lambda: difference_interval([[True]], []), "verdicts per seed: none"),
    ],
)
def test_what_cannot_be_resampled_is_refused(call, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        call()
