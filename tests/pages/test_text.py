"""Strings that a page can show, and numbers that a reader can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from pages.text import LONGEST, bytes_text, clean, number, percent, shown


@given(st.text(st.characters()))
def test_what_is_cleaned_can_be_written_and_read_back_the_same(text):
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert cleaned.encode().decode() == cleaned
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in cleaned)
    assert len(cleaned) <= len(text)


def test_what_is_sound_stays_as_it_is():
    text = "Fièvre 38 °C, β-Blocker; 発熱 حمى 👩🏽‍⚕️\n\tzero-width\u200djoiner"
    assert clean(text) == text


def test_a_text_that_turns_the_direction_of_what_follows_does_not():
    assert clean("a\u202eb\u2066c\u2069") == "a\ufffdb\ufffdc\ufffd"


def test_a_text_without_end_is_cut_and_says_by_how_much():
    assert clean("x" * (LONGEST + 1_234)) == "x" * LONGEST + " … (1,234 characters more)"
    assert clean("x" * LONGEST) == "x" * LONGEST


def test_only_our_own_markup_is_let_through():
    assert shown(Markup("<b>")) == Markup("<b>") and isinstance(shown(Markup("<b>")), Markup)
    assert not isinstance(shown("<b>"), Markup) and shown(None) == "" and shown(3) == "3"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (7, "7"), (-1234, "-1,234"), (999_999, "999,999"), (1e6, "1 M"), (6_738_415_616, "6.738 B"),
        (2e13, "20 T"), (1e18, "1e+18"), (0.5, "0.5"), (2803.4, "2,803"), (1 / 3, "0.3333"), (2e-5, "2e-05"),
        (float("nan"), "nan"), (float("-inf"), "-inf"), (None, "–"),
    ],
)  # fmt: skip
def test_numbers_for_a_reader(value, text):
    assert number(value) == text


def test_shares_and_bytes():
    assert percent(0.3125) == "31.2\u00a0%" and percent(1) == "100.0\u00a0%" and percent(0.5, 0) == "50\u00a0%"
    assert bytes_text(1_500) == "1.5\u00a0kB" and bytes_text(78e9) == "78.00\u00a0GB"
