"""Curves: however many points, no extreme is lost, no gap closed, no more drawn than a page has room for."""

import math
import random
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from pages import Lines, Series, running_mean
from pages.lines import COLUMNS, STRIPS, path, thinned
from pages.scale import Scale

values = st.one_of(st.none(), st.just(math.nan), st.floats(-1e6, 1e6))


def columns_of(points, x, y):
    """Column -> heights, one by one: what `thinned` must agree with."""
    found = {}
    for at, value in points:
        if (up := y.place(value)) is not None:
            found.setdefault(round(x.place(at) * COLUMNS), []).append(round((1 - up) * COLUMNS))
    return found


@given(st.lists(values, min_size=1, max_size=300), st.integers(1, 60))
@settings(deadline=None)
def test_each_column_keeps_its_extremes_in_their_order(ys, crowd):
    """`crowd` points share a column."""
    points = [(i / crowd, y) for i, y in enumerate(ys)]
    x, y = Scale(0.0, COLUMNS), Scale(-1e6, 1e6)
    drawn = {}
    for run in thinned(points, x, y):
        for column, height in run:
            drawn.setdefault(column, []).append(height)
    expected = columns_of(points, x, y)
    assert drawn.keys() == expected.keys()
    for column, heights in drawn.items():
        assert len(heights) <= 2
        assert {*heights} == {min(expected[column]), max(expected[column])}
        assert heights == sorted(heights, key=expected[column].index)


@given(st.lists(values, min_size=2, max_size=200))
@settings(deadline=None)
def test_no_curve_crosses_a_gap(ys):
    """With a column for each point, the runs are exactly those between the gaps."""
    points = list(enumerate(ys))
    x, y = Scale(0.0, COLUMNS), Scale(-1e6, 1e6)
    runs, current = [], []
    for at, value in [*points, (len(points), None)]:
        if y.place(value) is None:
            runs, current = [*runs, current] if current else runs, []
        else:
            current.append(at)
    assert [[column for column, _ in run] for run in thinned(points, x, y)] == runs


def test_a_gap_narrower_than_a_column_breaks_the_curve():
    points = [(i, math.nan if i == 50_000 else 1.0) for i in range(100_000)]
    assert path(points, Scale(0, 100_000), Scale(0, 2)).count("M") == 2


def test_one_spike_among_a_hundred_thousand_points_is_drawn():
    chance = random.Random(0)
    points = [(i, 100.0 if i == 77_777 else chance.random()) for i in range(100_000)]
    chart = Lines("loss", [Series("loss", points)])
    drawn = str(chart.path(chart.series[0]))
    assert "778 0" in drawn  # the top of the drawing, where the spike is
    assert len(drawn) < 25_000 and len(re.findall(r"\d+ \d+", drawn)) <= 2 * (COLUMNS + 1)


def test_gaps_without_number_stay_bounded():
    points = [(i, math.nan if i % 2 else 1.0) for i in range(100_000)]
    assert len(path(points, Scale(0, 100_000), Scale(0, 2))) < 20_000


def test_a_log_axis_leaves_out_what_is_not_positive_and_says_how_many():
    chart = Lines("norm", [Series("norm", [(1, 1.0), (2, 0.0), (3, -1.0), (4, 100.0)])], log=True)
    assert chart.missing == 2
    assert str(chart.path(chart.series[0])) == "M0 1000h0M1000 0h0"


def test_the_summary_says_what_the_chart_shows():
    chart = Lines("Loss", [Series("training", [(1, 3.0), (2, 9.0), (3, 1.5)]), Series("none", [])], "nats")
    assert chart.summary == "Loss, nats, by step. training: 3 at 1, 1.5 at 3; between 1.5 and 9. none: no values"


def test_strips_tell_the_values_that_lie_in_them():
    points = [(i, float(i)) for i in range(1_001)]
    strips = Lines("t", [Series("loss", points), Series("other", [(0, math.nan)])]).strips()
    assert len(strips) == STRIPS
    assert strips[0] == (0.0, 0.02, "step 0 to 19: loss 0 to 19, other NaN")
    assert strips[-1][2] == "step 980 to 1,000: loss 980 to 1,000"


def test_strips_without_points_are_left_out():
    assert [words for *_, words in Lines("t", [Series("a", [(0, 1.0), (9, 2.0)])]).strips()] == [
        "step 0: a 1", "step 9: a 2",
    ]  # fmt: skip


def test_a_running_mean_of_many_points_is_no_longer_than_the_page_is_wide():
    means = running_mean([(i, float(i)) for i in range(12_345)], 100)
    assert 1000 <= len(means) <= 1100 and means[-1] == (12_344, 12_294.5)


@given(st.lists(st.floats(-100, 100), min_size=1), st.integers(1, 9))
def test_a_running_mean_is_the_mean(ys, window):
    means = running_mean(list(enumerate(ys)), window)
    assert len(means) == len(ys)
    for i, (x, mean) in enumerate(means):
        assert x == i and (mean is None) == (i + 1 < window)
        if mean is not None:  # a sum of up to 9 terms of up to 100, each rounded once
            assert math.isclose(mean, sum(ys[i + 1 - window : i + 1]) / window, rel_tol=1e-12, abs_tol=1e-12)
