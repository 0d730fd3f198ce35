"""Bars: where they end, where their intervals lie, and what is said beside them."""

import math
import re

import pytest
from markup import markup_of

from pages import Bar, Bars, Page, Section


def drawn(bars: Bars) -> str:
    return Page("t", [Section("s", [bars])]).content().decode()


def test_a_bar_ends_at_its_value_and_the_interval_lies_around_it():
    bars = Bars("Right", [Bar("all", 0.3, ["30 %"], 0.2, 0.4, 0.25)], ["group", "accuracy"], "%")
    assert [label for _, label in bars.axis.ticks()] == ["0", "10", "20", "30", "40"]
    content = drawn(bars)
    assert '<rect class="bar " width="75%"' in content  # 30 of 40
    assert '<line x1="50%" x2="100%" y1="50%" y2="50%"/>' in content
    assert '<line class="chance" x1="62.5%" x2="62.5%"' in content
    assert "40\u00a0%</text>" in content and "30\u00a0%</text>" not in content  # the unit stands at the last tick


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_has_no_length_has_no_bar(value):
    content = drawn(Bars("t", [Bar("a", value), Bar("b", 2.0)]))
    assert len(re.findall(r'<rect class="bar', content)) == 1


def test_bars_of_nothing_are_an_empty_table():
    assert markup_of(drawn(Bars("t", [])).encode()).tags.count("tr") == 1


def test_the_title_of_each_bar_says_what_its_row_says():
    content = drawn(Bars("t", [Bar("step1", 0.5, ["200", "50 %"])], unit="%"))
    assert "<title>step1: 200, 50 %</title>" in content
