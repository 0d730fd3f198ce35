"""Axes: everything lies on them, and their ticks are round numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pages.scale import Scale, has_place

numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(numbers), st.booleans(), st.booleans())
def test_every_value_that_has_a_place_lies_on_the_axis(values, log, exact):
    scale = Scale.over(values, log=log, exact=exact)
    assert scale.low < scale.high
    for value in values:
        place = scale.place(value)
        assert (place is None) == (not has_place(value, log=log))
        assert place is None or -1e-6 <= place <= 1 + 1e-6


@given(st.lists(numbers), st.booleans())
def test_ticks_rise_and_are_few_and_all_differ(values, log):
    ticks = Scale.over(values, log=log).ticks()
    places = [place for place, _ in ticks]
    assert 2 <= len(ticks) <= 10
    assert places == sorted(set(places)) and all(0 <= place <= 1 for place in places)


@given(st.lists(st.floats(-1e9, 1e9), min_size=2))
def test_labels_of_ordinary_numbers_are_true(values):
    scale = Scale.over(values)
    step = scale.ticks()[1][0] - scale.ticks()[0][0]
    for place, label in scale.ticks():
        said = scale.place(float(label.replace(",", "")))
        assert said == pytest.approx(place, abs=step / 4)  # a label is rounded to its last digit


def test_by_hand():
    assert Scale.over([3.0, 97.0]).ticks() == [(i / 5, f"{20 * i}") for i in range(6)]
    assert [label for _, label in Scale.over([0, 2e-3]).ticks()] == ["0.0000", "0.0005", "0.0010", "0.0015", "0.0020"]
    assert [label for _, label in Scale.over([1, 12], exact=True).ticks(whole=True)] == ["5", "10"]
    assert [label for _, label in Scale.over([1, 3], exact=True).ticks(whole=True)] == ["1", "2", "3"]
    log = Scale.over([0.3, 40], log=True)
    assert [label for _, label in log.ticks()] == ["0.2", "0.5", "1", "2", "5", "10", "20", "50"]
    assert Scale(1, 100, log=True).place(10) == pytest.approx(0.5)


def test_values_that_are_all_the_same_lie_in_the_middle():
    for value in (0.0, 5.0, -5.0, 1e16, 5e-324):
        assert 0.2 <= Scale.over([value, value]).place(value) <= 0.8
    assert Scale.over([7.0], log=True).place(7.0) is not None


def test_an_axis_of_nothing():
    assert Scale.over([]) == Scale.over([math.nan]) == Scale(0.0, 1.0)
    assert Scale.over([-1.0, 0.0], log=True) == Scale(1.0, 10.0, log=True)
