import io
import math

import pytest
from exam_results import exam, result
from rich.console import Console, RenderableType

from data.exams import Question
from evaluation import (
    PRESETS,
    Accuracy,
    Result,
    RotationBias,
    accuracy_table,
    compare,
    comparison_table,
    evenly,
    paired_bootstrap_interval,
    presets_table,
    rotated,
    rotation_table,
    wilson_interval,
    worked_example,
)


def shown(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- Accuracies ---


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


def test_published_accuracies_stand_beside_the_measured_ones_within_80_columns() -> None:
    results = exam("rw" * 46, "step1") + exam("rw" * 55, "step2") + [result("x", True, "step9", seen=True)]
    console = Console(file=io.StringIO(), width=80)
    console.print(accuracy_table(results, "an exam", {"step1": 0.231, "step2": 0.3}))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= 80 and "…" not in line for line in lines)
    rows = {line.split()[0]: line.split()[-1] for line in lines if line.strip()}
    assert (rows["questions"], rows["step1"], rows["step2"]) == ("published", "23.1%", "30.0%")
    assert rows["step9"].endswith("%") and rows["all"] == "25.0%"  # chance: nothing was published


# --- Two runs ---


def test_comparison_table_prints_both_accuracies_and_p() -> None:
    text = shown(comparison_table(compare(exam("w" * 12 + "r"), exam("r" * 12 + "w"))))
    [row, change] = [line for line in text.splitlines() if "all" in line]
    low, high = (f"{100 * end:+.1f}" for end in paired_bootstrap_interval(12, 1, 13))
    assert f"all: +84.6 points, 95 % interval {low} to {high} (resampled, paired)" in change
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


# --- Orders, presets ---


def test_the_table_of_orders_fits_80_columns_whatever_the_counts() -> None:
    letters = dict.fromkeys("ABCDEFGHIJ", 9999)
    found = Accuracy.of([True] * 99_999, [10] * 99_999)
    bias = RotationBias((found,) * 10, 99_999, 88_888, 77_777, letters, dict.fromkeys(letters, 9999.0), 66_666)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rotation_table(bias))
    text = console.export_text()
    assert "options moved on by" in text and "…" not in text and max(map(len, text.splitlines())) <= 80
    assert text.count("9999") >= 10, "no figure is cut"


def test_letters_of_a_report_are_text_and_no_markup() -> None:
    question = Question("1", "Which?", {"[red]": "x", "[/]": "y", "C": "z"}, "C")
    console = Console(width=80, record=True, file=io.StringIO())
    results = [Result.said(rotated(question, k), "[/]", ()) for k in range(3)]
    console.print(rotation_table(RotationBias.of([[result] for result in results])))
    assert console.export_text().count("[/]") >= 1


def test_the_table_of_presets_fits_80_columns_and_holds_every_row() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(presets_table())
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    for name in PRESETS:
        assert sum(line.split()[:1] in ([name], [f"{name}*"]) for line in lines) == 1
    assert any("47.3 47.7 60.2" in line for line in lines)


# --- Examples ---


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
