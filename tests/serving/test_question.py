"""Requests: what is taken, and what is refused with which words."""

import json
import math
from typing import Any

import pytest

from serving.question import RANGES, Question, parse_question

PLAIN = {"instruction": "What is gout?", "sides": ["base"]}


def test_defaults_fill_up() -> None:
    assert parse_question(PLAIN) == Question("What is gout?", ("base",))


def test_every_setting_is_taken() -> None:
    settings = {"input": "A case.", "temperature": 1, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}
    row = PLAIN | settings | {"sides": ["base", "adapter"], "max_new_tokens": 7, "seed": 2**53 - 1}
    question = parse_question(json.loads(json.dumps(row)))
    assert vars(question) == row | {"sides": ("base", "adapter")}


@pytest.mark.parametrize("name", RANGES)
def test_both_ends_of_a_range_are_in_it(name: str) -> None:
    for value in RANGES[name]:
        assert getattr(parse_question(PLAIN | {"temperature": 1} | {name: value}), name) == value
    low, high = RANGES[name]
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"{name} = {value} must be from {low} to {high}"):
            parse_question(PLAIN | {"temperature": 1} | {name: value})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "must be a JSON object"),
        (PLAIN | {"beams": 2}, "unknown key 'beams'; the known ones are instruction, sides"),
        ({"sides": ["base"]}, "instruction is empty"),
        (PLAIN | {"instruction": " \n"}, "instruction is empty"),
        (PLAIN | {"instruction": None}, "instruction must be a string"),
        (PLAIN | {"input": 3}, "input must be a string"),
        ({"instruction": "x"}, "sides must be"),
        (PLAIN | {"sides": "base"}, "sides must be"),
        (PLAIN | {"sides": []}, "sides must be"),
        (PLAIN | {"sides": ["base", "base"]}, "sides must be"),
        (PLAIN | {"sides": [["base"]]}, "sides must be"),
        (PLAIN | {"seed": True}, "seed must be a whole number"),
        (PLAIN | {"seed": None}, "seed must be a whole number"),
        (PLAIN | {"max_new_tokens": 1.0}, "max_new_tokens must be a whole number"),
        (PLAIN | {"temperature": "1"}, "temperature must be a number"),
        (PLAIN | {"temperature": math.nan}, "temperature = nan must be from 0 to 5"),
        (PLAIN | {"top_k": 3}, "need a draw"),
        (PLAIN | {"temperature": 0, "top_p": 0.5}, "need a draw"),
    ],
)
def test_refused(row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_question(row)
