import math
from statistics import NormalDist

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import statistics as oracle

from evaluation.statistics import Accuracy, chance_level, half_width_note, mcnemar_exact, wilson_interval

Z = NormalDist().inv_cdf(0.975)
counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


# Table I of Newcombe, Statistics in Medicine 17 (1998), 857-872, "score method, no continuity correction".
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_gives_published_values(correct: int, n: int, low: float, high: float) -> None:
    assert tuple(round(bound, 4) for bound in wilson_interval(correct, n)) == (low, high)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # check_bound only gathers
@given(counts)
def test_wilson_interval_solves_its_equation(check_bound, case: tuple[int, int]) -> None:
    correct, n = case
    error = max(
        abs(a - b) for a, b in zip(wilson_interval(correct, n), oracle.wilson_interval(correct, n, Z), strict=True)
    )
    # Some ten float64 operations on values of at most 1, in both.
    check_bound("wilson interval: closed form vs roots", error, 1e-12)


@given(counts)
def test_wilson_interval_holds_the_estimate_and_mirrors(case: tuple[int, int]) -> None:
    correct, n = case
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    mirrored = wilson_interval(n - correct, n)
    assert math.isclose(low, 1 - mirrored[1], abs_tol=1e-12)
    assert math.isclose(high, 1 - mirrored[0], abs_tol=1e-12)


@given(counts, st.floats(0.5, 0.98))
def test_wilson_interval_narrows_with_evidence_and_widens_with_confidence(
    case: tuple[int, int], confidence: float
) -> None:
    correct, n = case

    def width(*arguments: float) -> float:
        low, high = wilson_interval(*arguments)  # type: ignore[arg-type]
        return high - low

    assert width(4 * correct, 4 * n) < width(correct, n)
    assert width(correct, n, confidence) < width(correct, n, confidence + 0.01)


def test_wilson_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Exact coverage at p = 0.2, n = 100: the total probability of the counts whose interval holds p."""
    covered = sum(
        math.comb(100, k) * 0.2**k * 0.8 ** (100 - k)
        for k in range(101)
        if wilson_interval(k, 100)[0] <= 0.2 <= wilson_interval(k, 100)[1]
    )
    assert 0.93 < covered < 0.97  # discrete counts cannot hit 0.95; the textbook interval falls well short of it


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_interval_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} correct of {n}"):
        wilson_interval(correct, n)


def test_wilson_interval_refuses_a_percentage() -> None:
    with pytest.raises(ValueError, match=r"0\.95"):
        wilson_interval(1, 2, 95)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 5, 2 / 32), (1, 5, 14 / 64), (10, 0, 2 / 1024), (3, 3, 1.0), (1, 0, 1.0), (2, 8, 2 * (1 + 10 + 45) / 1024)],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    assert mcnemar_exact(gained, lost) == p


@pytest.mark.parametrize("n", range(15))
def test_mcnemar_counts_coin_falls(check_bound, n: int) -> None:
    for gained in range(n + 1):
        error = abs(mcnemar_exact(gained, n - gained) - oracle.mcnemar_exact(gained, n - gained))
        check_bound("mcnemar: closed form vs enumeration", error, 1e-15)  # both are whole numbers over 2^n


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_a_symmetric_probability_that_falls_with_the_gap(gained: int, lost: int) -> None:
    p = mcnemar_exact(gained, lost)
    assert 0 < p <= 1
    assert p == mcnemar_exact(lost, gained)
    larger, smaller = max(gained, lost), min(gained, lost)
    if smaller:
        assert mcnemar_exact(larger + 1, smaller - 1) < p or p == 1


def test_mcnemar_survives_whole_exams() -> None:
    assert 0 < mcnemar_exact(700, 500) < 1e-7
    assert 0.9 < mcnemar_exact(5000, 5001) <= 1


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="-1"):
        mcnemar_exact(-1, 2)


def test_chance_level_is_what_guessing_gives(check_bound) -> None:
    options = [2, 3, 4, 4, 5, 5, 5, 8]
    estimate, standard_error = oracle.chance_level(options, trials=200_000, seed=0)
    # Four standard errors: one seed in 16,000 would fail, and this one is fixed.
    check_bound("chance level: formula vs guessing", abs(chance_level(options) - estimate), 4 * standard_error)


@pytest.mark.parametrize("options", [[], [4, 0]])
def test_chance_level_refuses_nothing_to_guess(options: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        chance_level(options)


def test_accuracy_counts() -> None:
    accuracy = Accuracy.of([True, False, True], [4, 5, 4])
    assert (accuracy.correct, accuracy.n, accuracy.value) == (2, 3, 2 / 3)
    assert (accuracy.low, accuracy.high) == wilson_interval(2, 3)
    assert math.isclose(accuracy.chance, (0.25 + 0.2 + 0.25) / 3)


@pytest.mark.parametrize(("n", "points"), [(1, "98.0"), (92, "10.2"), (119, "9.0"), (324, "5.4"), (1273, "2.7")])
def test_half_width_note_tells_the_widest_interval(n: int, points: str) -> None:
    assert half_width_note(n) == f"n = {n:,}: 95 % intervals reach ±{points} points"
    # Exactly: the textbook half width, largest at one half.
    widest = max(Z * math.sqrt(k / n * (1 - k / n) / n) for k in range(n + 1)) if n > 1 else Z / 2
    assert abs(100 * widest - float(points)) < 0.06 + 50 * Z / math.sqrt(n) / n**2  # an odd n has no half


def test_half_width_note_refuses_no_questions() -> None:
    with pytest.raises(ValueError, match="n be at least 1"):
        half_width_note(0)
