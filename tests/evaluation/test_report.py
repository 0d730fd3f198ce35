import io
import json
import math
from pathlib import Path

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
    notes,
    read_report,
    wilson_interval,
    worked_example,
    write_report,
)
from files import FileError


def result(name: str, right: bool, step: str = "", seen: bool | None = None, **changes: object) -> Result:
    """A question with four options whose answer is B."""
    scores = {"A": -3.0, "B": -1.0 if right else -4.0, "C": -2.0, "D": -5.5}
    return Result(**({"id": name, "step": step, "seen": seen, "answer": "B", "scores": scores} | changes))  # type: ignore[arg-type]


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
    text = shown(worked_example(question, Result("[b]1", "", None, "B", {"A": -1.0, "B": -2.0})))
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
    text = shown(worked_example(question, Result("7", "", None, "A", {"A": math.log(0.2), "B": math.log(0.8)})))
    assert "7: B is wrong, the answer is A" in text
    assert "Read this." in text
    lines = text.splitlines()
    assert any("✓" in line and "A: one" in line and "20.0%" in line for line in lines)
    assert any("✓" not in line and "B: two" in line and "80.0%" in line for line in lines)


def test_notes_count_ties_and_cuts() -> None:
    tied = result("1", True, scores={"A": -1.0, "B": -1.0})
    assert notes([result("2", True)]) == []
    assert notes([tied, result("2", True), result("3", True, truncated=True)]) == [
        "1 of 3 questions ended in a tie; the first of the best options was taken",
        "1 of 3 prompts were cut on the left to fit the model's window",
    ]


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
    for changed in ({"answer": "C"}, {"scores": {"A": -1.0, "B": -2.0}}, {"scores": {"B": -1.0, "A": -2.0}}):
        with pytest.raises(ValueError, match=r"had the answer B of A, B, C, D, now .*same version of the exam"):
            compare([result("1", True)], [result("1", True, **changed)])


def test_questions_can_be_checked_before_they_are_scored() -> None:
    question = Question("1", "Which?", {"A": "w", "B": "x", "C": "y", "D": "z"}, "B")
    check_same_questions([result("1", False)], [question])
    with pytest.raises(ValueError, match="not about the same questions"):
        check_same_questions([result("2", False)], [question])


# --- The file ---


def test_report_round_trip(tmp_path: Path) -> None:
    results = [
        result("é", True, "step1", seen=True),
        result("2", False, "step2", seen=False, truncated=True),
        result("3", True, "step2", scores={"A": -1.0 / 3, "B": -1.0 / 3}),
    ]
    path = tmp_path / "new" / "folder" / "report.json"
    write_report(path, results, {"description": "a model", "limit": None})
    report = read_report(path)
    assert report.results == results  # floats included: JSON keeps their shortest exact form
    assert report.settings == {"description": "a model", "limit": None}
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_report_says_what_a_reader_needs(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(path, exam("rrw"), {})
    content = json.loads(path.read_text())
    assert content["accuracy"]["all"]["correct"] == 2
    assert content["accuracy"]["all"]["value"] == 2 / 3
    assert content["accuracy"]["all"]["chance"] == 0.25
    assert content["versions"].keys() >= {"python", "torch", "medalpaca-from-scratch"}
    assert content["questions"][2] == {
        "id": "/2",
        "step": "",
        "seen": None,
        "answer": "B",
        "scores": {"A": -3.0, "B": -4.0, "C": -2.0, "D": -5.5},
        "truncated": False,
        "predicted": "C",
        "correct": False,
        "margin": -2.0,
        "tied": False,
    }


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_report(path, exam("r"), {})
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match=r"not written: No space left on device.*report\.json"):
        write_report(path, exam("rw"), {})
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


ROW = {"id": "1", "step": "", "seen": None, "answer": "A", "scores": {"A": -1.0, "B": -2.0}, "truncated": False}
GOOD = {"format": 1, "settings": {}, "questions": [ROW]}


HOSTILE: list[tuple[str, str]] = [
    ("", "not valid JSON"),
    (json.dumps(GOOD)[:-1], "not valid JSON"),
    ("[]", "the root is a list, expected an object"),
    ("null", "the root is null"),
    ("{}", 'the key "format" is missing'),
    (json.dumps(GOOD | {"format": 2}), "its format is 2, expected 1"),
    (json.dumps(GOOD | {"format": True}), '"format" is a boolean'),
    (json.dumps(GOOD | {"settings": []}), '"settings" is a list, expected an object'),
    (json.dumps(GOOD | {"settings": {"description": 3}}), 'settings: "description" is a number, expected a string'),
    (json.dumps(GOOD | {"settings": {"description": "\ud800"}}), "lone surrogate U+D800"),
    (json.dumps(GOOD | {"questions": {}}), '"questions" is an object, expected a list'),
    (json.dumps(GOOD | {"questions": []}), "holds no questions"),
    (json.dumps(GOOD | {"questions": [ROW, ROW]}), "two of its questions have one id"),
    (json.dumps(GOOD | {"questions": [ROW, None]}), "question 2: the row is null"),
    (json.dumps(GOOD | {"questions": [ROW | {"answer": "C"}]}), "question 1: no score for its answer 'C'"),
    (json.dumps(GOOD | {"questions": [ROW | {"scores": {"A": -1.0}}]}), "or only that one"),
    (json.dumps(GOOD | {"questions": [ROW | {"scores": {"A": "high", "B": -1.0}}]}), 'scores: "A" is a string'),
    (json.dumps(GOOD | {"questions": [ROW | {"scores": {"A": -1, "B": -1.0}}]}), 'scores: "A" is a number'),
    (json.dumps(GOOD | {"questions": [ROW | {"scores": {"A": math.nan, "B": -1.0}}]}), "NaN, which is no number"),
    (json.dumps(GOOD).replace("-2.0", "-1e999"), 'the score of "B" is no finite number'),
    (json.dumps(GOOD).replace('"B"', '"A"'), 'the key "A" occurs twice'),
    (json.dumps(GOOD).replace("-2.0", "[" * 10**5), "nested too deeply"),
]
WRONG_TYPES = {
    "id": (None, 3, [], "a\0"),
    "step": (None, 3, [], "\ud800"),
    "seen": (0, "yes", []),
    "answer": (None, 3, ["A"], {}),
    "scores": (None, 3, [], [["A", -1.0]], "A", {}),
    "truncated": (None, 0, "no"),
}
HOSTILE += [
    (json.dumps(GOOD | {"questions": [ROW | {key: value}]}), "question 1")
    for key, values in WRONG_TYPES.items()
    for value in values
]
HOSTILE += [
    (json.dumps(GOOD | {"questions": [{k: v for k, v in ROW.items() if k != key}]}), f'the key "{key}" is missing')
    for key in ROW
]


@pytest.mark.parametrize(("content", "problem"), HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
def test_a_bad_report_is_named(tmp_path: Path, count_faults, content: str, problem: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(FileError, match=r"report\.json.*; ") as refused:
        read_report(path)
    assert problem in str(refused.value) and refused.value.remedy
    assert str(refused.value).isprintable() and len(str(refused.value)) < 1000
    count_faults("bad reports")


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json: cannot be read .*--out"):
        read_report(tmp_path / "none.json")
    (tmp_path / "report.json").write_text(json.dumps(GOOD))
    assert len(read_report(tmp_path / "report.json").results) == 1  # the rows above fail for their change alone
