import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from data.exams import Question
from evaluation import (
    Result,
    accuracies,
    accuracy_table,
    check_same_questions,
    compare,
    comparison_table,
    evenly,
    wilson_interval,
    worked_example,
)


def result(name: str, right: bool, step: str = "", seen: bool | None = None, **changes: object) -> Result:
    """A question with four options whose answer is B."""
    scores = {"A": -3.0, "B": -1.0 if right else -4.0, "C": -2.0, "D": -5.5}
    fields = {"letters": tuple("ABCD"), "predicted": "B" if right else "C", "scores": scores}
    return Result(**({"id": name, "step": step, "seen": seen, "answer": "B"} | fields | changes))  # type: ignore[arg-type]


def exam(verdicts: str, step: str = "") -> list[Result]:
    """One question per letter: r is right, w is wrong."""
    return [result(f"{step}/{i}", verdict == "r", step) for i, verdict in enumerate(verdicts)]


def shown(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- Groups ---


def test_groups_are_steps_then_seen_then_all() -> None:
    results = [
        result("1", True, "step2", seen=True),
        result("2", False, "step2", seen=False),
        result("3", True, "step1", seen=True),
        result("4", True, "step1"),
    ]
    groups = accuracies(results)
    assert list(groups) == ["step2", "step1", "seen", "unseen", "all"]
    assert {name: (group.correct, group.n) for name, group in groups.items()} == {
        "step2": (1, 2),
        "step1": (2, 2),
        "seen": (2, 2),
        "unseen": (0, 1),
        "all": (3, 4),
    }


def test_a_single_step_is_not_repeated() -> None:
    assert list(accuracies(exam("rw", "step1"))) == ["all"]


# --- Tables ---


def test_accuracy_table_prints_counts_interval_and_chance() -> None:
    low, high = wilson_interval(3, 4)
    [row] = [line for line in shown(accuracy_table(exam("rrrw"), "the exam")).splitlines() if "all" in line]
    for cell in ("4", "3", "75.0%", f"{low:.1%} – {high:.1%}", "25.0%"):
        assert cell in row


def test_text_from_files_is_not_taken_for_markup() -> None:
    text = shown(accuracy_table(exam("rw", "[bold]one[/bold]") + exam("rw", "two"), "[red]folder[/red]"))
    assert "[bold]one[/bold]" in text
    assert "[red]folder[/red]" in text
    question = Question("[b]1", "Which [/]?", {"A": "[red]x", "B": "y"}, "B")
    text = shown(worked_example(question, Result.scored(question, {"A": -1.0, "B": -2.0})))
    assert "Which [/]?" in text
    assert "[red]x" in text


def test_comparison_table_prints_both_accuracies_and_p() -> None:
    text = shown(comparison_table(compare(exam("w" * 12 + "r"), exam("r" * 12 + "w"))))
    [row] = [line for line in text.splitlines() if "all" in line]
    for cell in ("7.7% (1–33)", "92.3% (67–99)", "25%", "+12", "−1", "0.003"):  # p = 2 · (1 + 13) / 2^13 = 0.0034
        assert cell in row


def test_comparison_table_fits_into_80_columns() -> None:
    before = exam("w" * 1900, "step1") + exam("r" * 5 + "w" * 1900, "step2&3")
    after = exam("r" * 1900, "step1") + exam("w" * 5 + "r" * 1900, "step2&3")
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison_table(compare(before, after), "an exam"))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    [row] = [line.split() for line in lines if "step2&3" in line]
    assert row == ["step2&3", "1905", "0.3%", "(0–1)", "99.7%", "(99–100)", "25%", "+1900", "−5", "<0.001"]
    assert not any("…" in line for line in lines)


def test_worked_example_shows_probabilities_answer_and_verdict() -> None:
    question = Question("7", "Which?", {"A": "one", "B": "two"}, "A", context="Read this.")
    text = shown(worked_example(question, Result.scored(question, {"A": math.log(0.2), "B": math.log(0.8)})))
    assert "7: B is wrong, the answer is A" in text
    assert "Read this." in text
    lines = text.splitlines()
    assert any("✓" in line and "A: one" in line and "20.0%" in line for line in lines)
    assert any("✓" not in line and "B: two" in line and "80.0%" in line for line in lines)


def test_worked_example_shows_what_was_said() -> None:
    question = Question("7", "Which?", {"A": "one", "B": "two"}, "A")
    text = shown(worked_example(question, Result.said(question, None, ("Hm.\n[red]", "x" * 1000))))
    assert "7: no answer is wrong, the answer is A" in text
    assert "said, try 1: 'Hm.\\n[red]'" in text
    assert "x" * 100 in text and text.count("x") == 300
    assert "%" not in text
    assert "7: A is right" in shown(worked_example(question, Result.said(question, "A", ("A: one",))))


@pytest.mark.parametrize(
    ("n", "count", "expected"), [(10, 5, [0, 2, 4, 6, 8]), (3, 5, [0, 1, 2]), (4, 0, []), (0, 2, [])]
)
def test_examples_are_taken_evenly(n: int, count: int, expected: list[int]) -> None:
    pairs = [(Question(str(i), "Which?", {"A": "x", "B": "y"}, "A"), result(str(i), True)) for i in range(n)]
    assert [int(row.id) for _, row in evenly(pairs, count)] == expected


def test_published_accuracies_stand_beside_the_measured_ones_within_80_columns() -> None:
    results = exam("rw" * 46, "step1") + exam("rw" * 55, "step2") + [result("x", True, "step9", seen=True)]
    console = Console(file=io.StringIO(), width=80)
    console.print(accuracy_table(results, "an exam", {"step1": 0.231, "step2": 0.3}))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= 80 and "…" not in line for line in lines)
    rows = {line.split()[0]: line.split()[-1] for line in lines if line.strip()}
    assert (rows["questions"], rows["step1"], rows["step2"]) == ("published", "23.1%", "30.0%")
    assert rows["step9"].endswith("%") and rows["all"] == "25.0%"  # chance: nothing was published


def test_a_single_steps_published_accuracy_stands_beside_all() -> None:
    text = shown(accuracy_table(exam("rw", "step2"), "", {"step1": 0.1, "step2": 0.312}))
    assert [line.split()[-1] for line in text.splitlines() if "all" in line] == ["31.2%"]


# --- Comparing ---


def test_compare_counts_changed_verdicts_by_group() -> None:
    before = exam("rrww", "step1") + exam("wwww", "step2")
    after = exam("rwrr", "step1") + exam("rrrw", "step2")
    comparisons = compare(before, list(reversed(after)))  # paired by id, not by place
    assert {name: (row.gained, row.lost) for name, row in comparisons.items()} == {
        "step2": (3, 0),
        "step1": (2, 1),
        "all": (5, 1),
    }
    assert comparisons["all"].p_value == 14 / 64
    assert (comparisons["all"].before.correct, comparisons["all"].after.correct) == (2, 6)


@given(st.text("rw", min_size=1, max_size=40), st.randoms())
def test_gained_minus_lost_is_the_difference(before: str, random) -> None:
    after = "".join(random.choice("rw") for _ in before)
    [row] = compare(exam(before), exam(after)).values()
    assert row.gained - row.lost == row.after.correct - row.before.correct


def test_compare_refuses_other_questions() -> None:
    with pytest.raises(ValueError, match=r"2 occur in one only, such as /2; score both with the same --exam"):
        compare(exam("rrrr"), exam("rr"))


def test_compare_refuses_another_answer_key_and_other_options() -> None:
    for changed in ({"answer": "C"}, {"letters": ("A", "B")}, {"letters": tuple("BACD")}):
        with pytest.raises(ValueError, match=r"had the answer B of A, B, C, D, now .*same version of the exam"):
            compare([result("1", True)], [result("1", True, **changed)])


def test_questions_can_be_checked_before_they_are_scored() -> None:
    question = Question("1", "Which?", {"A": "w", "B": "x", "C": "y", "D": "z"}, "B")
    check_same_questions([result("1", False)], [question])
    with pytest.raises(ValueError, match="not about the same questions"):
        check_same_questions([result("2", False)], [question])
