"""data.self_instruct.parsing: a completion back to tasks, whatever the model wrote."""

import re
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Record
from data.self_instruct import Completion, load_seeds, parse_completion, render_prompt


def parsed(text: str, *, cut: bool = False, shots: int = 3, tasks: int = 20):
    found, dropped = parse_completion(Completion(text, cut), shots=shots, tasks=tasks)
    return [(task.instruction, task.input, task.output) for task in found], dict(dropped)


FOUR = " Add.\n4. Input:\n1, 2\n4. Output:\n3\n"
FIVE = "###\n5. Instruction: Name a fruit.\n5. Input:\n<noinput>\n5. Output:\nApple\n"


def test_two_tasks():
    assert parsed(FOUR + FIVE) == ([("Add.", "1, 2", "3"), ("Name a fruit.", "", "Apple")], {})


def test_the_last_task_is_dropped_if_the_text_was_cut():
    assert parsed(FOUR + FIVE, cut=True) == ([("Add.", "1, 2", "3")], {"cut": 1})
    assert parsed(FOUR, cut=True) == ([], {"cut": 1})


def test_a_task_before_a_cut_separator_is_whole():
    assert parsed(FOUR + "###\n", cut=True)[0] == [("Add.", "1, 2", "3")]


def test_a_trailing_separator_is_no_task():
    assert parsed(FOUR + FIVE + "###\n") == (parsed(FOUR + FIVE)[0], {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        " Add.",
        " Add.\n4. Input:\n1\n",
        " Add.\n4. Output:\n3\n4. Input:\n1\n",
        " Add.\n5. Input:\n1\n5. Output:\n3\n",
        " Add.\n4. Input:\n1\n4. Input:\n2\n4. Output:\n3\n",
        " Add.\n4. Input:\n1\n4. Output:\n3\n4. Output:\n3\n",
        " Add.\n14. Input:\n1\n14. Output:\n3\n",
        " Add. 4. Input: 1 4. Output: 3",
        " Add.\n4. input:\n1\n4. output:\n3\n",
    ],
)
def test_a_piece_without_the_three_labels_in_their_order_is_malformed(text):
    assert parsed(text) == ([], {"malformed": 1})
    assert parsed(text + FIVE) == ([("Name a fruit.", "", "Apple")], {"malformed": 1})


def test_a_wrong_number_drops_that_task_alone():
    six = FIVE.replace("5.", "6.")
    assert parsed(FOUR + FIVE.replace("5.", "7.") + six) == (
        [("Add.", "1, 2", "3"), ("Name a fruit.", "", "Apple")],
        {"malformed": 1},
    )


def test_a_label_within_a_line_is_text():
    text = " Write 4. Input: here.\n4. Input:\nin 4. Output: 2020.\n4. Output:\nx"
    assert parsed(text) == ([("Write 4. Input: here.", "in 4. Output: 2020.", "x")], {})


def test_tasks_beyond_the_list_are_left_out():
    assert parsed(FOUR + FIVE, tasks=4) == ([("Add.", "1, 2", "3")], {})
    assert parsed(FOUR + FIVE, tasks=4, cut=True) == ([("Add.", "1, 2", "3")], {})


@pytest.mark.parametrize("none", ["<noinput>", "<NoInput>", "", "\n"])
def test_no_input_is_an_empty_input(none):
    assert parsed(f" Add.\n4. Input:\n{none}\n4. Output:\n3")[0] == [("Add.", "", "3")]


def test_the_year_2020_ends_nothing():
    assert parsed(" Add.\n4. Input:\nIn 2020. Yes.\n4. Output:\n3")[0] == [("Add.", "In 2020. Yes.", "3")]


def test_the_real_seeds_come_back(real_data):
    """As a perfect model would write them."""
    seeds = load_seeds(real_data / "alpaca" / "seed_tasks.jsonl")
    came = 0
    for first in range(0, len(seeds), 17):
        tasks = seeds[first : first + 17]
        whole = render_prompt("", [seeds[0]] * 3 + tasks, 20)
        text = whole.split("\n4. Instruction:", 1)[1].rpartition("###")[0]
        found, dropped = parse_completion(Completion(text, False), shots=3, tasks=20)
        assert not dropped
        for task, seed in zip(found, tasks, strict=True):
            assert task.instruction == re.sub(r"\s+", " ", seed.instruction).strip().rstrip(":")
            assert (task.input, task.output) == (seed.input.strip(), seed.output.strip())
            came += 1
    assert came == 175


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["###", "4. Instruction:", "4. Input:", "4. Output:", "\n", " ", "x", "\0"])),
    st.booleans(),
)
def test_any_text_gives_tasks_and_counts(words, cut):
    text = "".join(words)
    found, dropped = parse_completion(Completion(text, cut), shots=3, tasks=20)
    assert all(isinstance(task, Record) for task in found)
    assert dropped.keys() <= {"cut", "malformed"}
    pieces = [piece for piece in f"4. Instruction:{text}".split("###")[:17] if piece.strip()]
    assert len(found) + Counter(dropped).total() == len(pieces)


@pytest.mark.parametrize("text", ["\n" * 200_000, " \t" * 200_000, "4. " * 100_000, "4.\n" * 100_000, "###" * 100_000])
def test_a_long_text_of_nothing_is_done_in_no_time(text):
    start = time.process_time()
    parse_completion(Completion(text, False), shots=3, tasks=20)
    assert time.process_time() - start < 2  # it is 0.02 s; a quadratic search would take minutes
