"""data.self_instruct.summary: what a run says about itself."""

import io
from collections import Counter

from rich.console import Console

from data.self_instruct import Kept, Round, print_summary
from data.self_instruct.summary import counts_table, first_words, similarity_table, summary_lines


def task(instruction: str, f: float = 0.5, **texts: str) -> Kept:
    return Kept(instruction, texts.get("input", ""), texts.get("output", "one two three"), {"nearest\none": f}, 0.1)


KEPT = [task("Name a fruit now", 0.65), task("name a tree", 0.6999, input="oak"), task("What? Ever", 1.0, output="x")]
ROUNDS = [
    Round(1, 5, 2, Counter({"cut": 4, "similar": 1}), KEPT[:2]),
    Round(2, 5, 0, Counter({"cut": 1}), []),
    Round(3, 5, 1, Counter({"short": 1}), KEPT[2:]),
]


def printed(rounds: list[Round], **options: int) -> str:
    out = io.StringIO()
    print_summary(rounds, console=Console(file=out, width=100), **options)
    return out.getvalue()


def cells(table) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_the_lines():
    assert summary_lines(ROUNDS, KEPT) == [
        "15 requests, 0.20 tasks kept of each",
        "3 prompts were drawn anew to fit into the window",
        "words of the instruction: 2 to 4, median 3",
        "words of the output: 1 to 3, median 3",
        "1 of 3 have an input",
        "2 different first words: name 2, what 1",
        "mean F with the whole pool 0.100",
    ]


def test_pieces_are_counted_by_reason():
    rows = cells(counts_table(KEPT, Counter({"cut": 5, "similar": 1, "short": 1})))
    assert [row[:2] for row in rows] == [["kept", "3"], ["cut", "5"], ["short", "1"], ["similar", "1"]]
    assert rows[1][2].startswith("50.0%")


def test_similarities_fall_into_tenths():
    rows = cells(similarity_table([0.0, 0.65, 0.6999, 0.7, 1.0]))
    assert [row[1] for row in rows] == ["1", "0", "0", "0", "0", "0", "2", "1", "0", "1"]


def test_a_first_word_is_counted_whatever_its_case():
    assert first_words([*KEPT, task("… …")]) == {"name": 2, "what": 1, "(none)": 1}


def test_the_last_tasks_are_shown_with_what_they_resemble():
    text = printed(ROUNDS, show=2)
    assert "Name a fruit now" not in text
    assert "name a tree" in text and "oak" in text and "F 0.70 with: nearest one" in text
    assert "name a tree" not in printed(ROUNDS, show=0)


def test_a_hostile_task_does_not_steer_the_terminal():
    text = printed([Round(1, 1, 0, Counter(), [task("[bold]a\x1b[2J b c", output="\x1b]0;x\x07")])])
    assert "\x1b" not in text and "[bold]a" in text and "\\x1b[2J" in text


def test_nothing_kept_and_nothing_done_are_said():
    assert "0 requests" in printed([])
    text = printed([Round(1, 5, 0, Counter({"malformed": 5}), [])])
    assert "malformed" in text and "words of" not in text and "100.0%" in text
