"""USMLE step folders: what is read, what is left out, and what a refusal names."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.exams import Question, left_out, load_exam
from files import FileError

ROW = {"no": 1, "question": "Which organ makes insulin?", "options": {"A": "Liver", "B": "Pancreas"}}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_step(folder: Path, rows: Any, key: Any, step: int = 1) -> Path:
    write(folder / f"step{step}.json", rows)
    write(folder / f"step{step}_solutions.json", key)
    return folder


def numbered(n: int) -> list[dict[str, Any]]:
    return [ROW | {"no": number} for number in range(1, n + 1)]


def test_reads_a_step_folder(tmp_path: Path) -> None:
    write_step(tmp_path, [ROW | {"no": 7, "seen": True}, ROW | {"no": "8"}], {"7": "B", "8": " a "})
    write_step(tmp_path, [ROW | {"seen": False}], {"1": "B"}, step=2)
    assert load_exam(tmp_path) == [
        Question("step1/7", ROW["question"], ROW["options"], "B", step="step1", seen=True),  # type: ignore[arg-type]
        Question("step1/8", ROW["question"], ROW["options"], "A", step="step1", seen=None),  # type: ignore[arg-type]
        Question("step2/1", ROW["question"], ROW["options"], "B", step="step2", seen=False),  # type: ignore[arg-type]
    ]


def test_steps_come_in_the_order_of_their_numbers_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for step in (10, 2, 1):
        write_step(tmp_path, numbered(1), {"1": "A"}, step)
    write(tmp_path / "notes.json", "not an exam")
    write(tmp_path / "step1_notes.json", "not an exam")
    assert [question.step for question in load_exam(tmp_path)] == ["step1", "step2", "step10"]


def test_questions_with_images_are_left_out_before_they_are_checked(tmp_path: Path) -> None:
    rows = [*numbered(3), ROW | {"no": 4, "options": {}}]
    write_step(tmp_path, rows, {"1": "A", "2": "A", "3": "A", "4": "C"})
    write_step(tmp_path, numbered(2), {"1": "A", "2": "A"}, step=2)
    write(tmp_path / "question_with_images.json", {"step1": [2, "4", 4], "step2": [1]})
    assert [question.id for question in load_exam(tmp_path)] == ["step1/1", "step1/3", "step2/2"]
    assert [question.id for question in load_exam(tmp_path / "step1.json")] == ["step1/1", "step1/3"]
    assert (left_out(tmp_path), left_out(tmp_path / "step1.json"), left_out(tmp_path / "step2.json")) == (3, 2, 1)


def test_lists_of_the_published_lengths_give_the_published_counts(tmp_path: Path) -> None:
    for step, n in enumerate((119, 120, 135), start=1):
        write_step(tmp_path, numbered(n), {str(number): "A" for number in range(1, n + 1)}, step)
    images = {"step1": [*range(4, 31)], "step2": [*range(25, 35)], "step3": [*range(123, 136)]}
    write(tmp_path / "question_with_images.json", images)
    assert Counter(question.step for question in load_exam(tmp_path)) == {"step1": 92, "step2": 110, "step3": 122}
    assert left_out(tmp_path) == 374 - 324


def test_without_a_list_nothing_is_left_out(tmp_path: Path) -> None:
    write_step(tmp_path, numbered(2), {"1": "A", "2": "A"})
    assert left_out(tmp_path) == 0


def test_a_list_of_images_beside_another_exam_is_not_its_own(tmp_path: Path) -> None:
    write(tmp_path / "question_with_images.json", {"step1": [1]})
    path = write(tmp_path / "medqa.jsonl", json.dumps(ROW | {"answer_idx": "B"}))
    assert len(load_exam(path)) == 1 and left_out(path) == 0


@pytest.mark.parametrize("name", ["step2", "step1_solutions", "question_with_images"])
def test_a_list_of_images_names_step_files(tmp_path: Path, name: str) -> None:
    write_step(tmp_path, numbered(1), {"1": "A"})
    write(tmp_path / "question_with_images.json", {name: [1]})
    for read in (load_exam, left_out):
        with pytest.raises(FileError, match=rf"question_with_images\.json, '{name}': there is no such step file"):
            read(tmp_path)


def test_an_empty_step_is_not_passed_over(tmp_path: Path) -> None:
    write_step(tmp_path, [], {})
    write_step(tmp_path, numbered(1), {"1": "A"}, step=2)
    with pytest.raises(FileError, match=r"step1\.json: holds no questions; complete it, or remove it"):
        load_exam(tmp_path)


def test_a_step_of_another_spelling_is_not_passed_over(tmp_path: Path) -> None:
    write_step(tmp_path, numbered(1), {"1": "A"}, step=2)
    write(tmp_path / "Step1.json", numbered(1))
    with pytest.raises(FileError, match=r"Step1\.json: a step file's name is written small; rename it to step1\.json"):
        load_exam(tmp_path)


@pytest.mark.parametrize(
    ("rows", "key", "message"),
    [
        (
            [ROW],
            {"1": "C"},
            r"step1.json, question 1: the answer 'C' is not among the options 'A', 'B'; correct the answer key",
        ),
        (
            [ROW],
            {"2": "A"},
            r"question 1: has no solution; add it to step1_solutions.json, or list it in",
        ),
        ([ROW], {}, r"question 1: has no solution"),
        ([ROW], {"1": 2}, r'step1_solutions.json: "1" is a number, expected a string'),
        ([ROW], ["A"], r"step1_solutions.json: the root is a list, expected an object"),
        ([ROW, ROW], {"1": "A"}, r"question 'step1/1' occurs twice; number the questions uniquely"),
        ([], {}, r"step1.json: holds no questions"),
        ({}, {}, r"step1.json: the root is an object, expected a list of objects"),
        ([None], {"1": "A"}, r"step1.json, row 1: the row is null, expected an object"),
        ([ROW | {"no": True}], {"1": "A"}, r'row 1: "no" is a boolean, expected a number or a string'),
        ([{"no": 1}], {"1": "A"}, r'question 1: the key "options" is missing'),
        ([ROW | {"question": " "}], {"1": "A"}, r"question 1: the text is empty; write it, or remove"),
        ([ROW | {"question": None}], {"1": "A"}, r'question 1: "question" is null'),
        ([ROW | {"question": "\ud83d?"}], {"1": "A"}, r"question 1: .*lone surrogate U\+D83D"),
        ([ROW | {"options": {"A": "x"}}], {"1": "A"}, r"question 1: 1 option\(s\), at least 2 .* complete them"),
        ([ROW | {"options": {"A": "x", "B": ""}}], {"1": "A"}, r"question 1: option 'B' is empty"),
        ([ROW | {"options": {"A": "x", "B": 3}}], {"1": "A"}, r'question 1, options: "B" is a number'),
        ([ROW | {"options": ["x", "y"]}], {"1": "A"}, r'question 1: "options" is a list, expected an object'),
        ([ROW | {"seen": "yes"}], {"1": "A"}, r'question 1: "seen" is a string, expected a boolean'),
        ([ROW | {"seen": 1}], {"1": "A"}, r'question 1: "seen" is a number, expected a boolean'),
        ("[{", {"1": "A"}, r"step1.json, row 1: not valid JSON"),
        ("", {"1": "A"}, r"step1.json: not valid JSON"),
        ("[" * 100_000, {"1": "A"}, r"step1.json, row 1: not valid JSON"),
        (
            '[{"no": 1, "options": {"A": "x", "A": "y"}}]',
            {},
            r'step1.json, row 1: the key "A" occurs twice in one object',
        ),
        ([ROW], '{"1": "A", "1": "B"}', r'step1_solutions.json: the key "1" occurs twice'),
    ],
)
def test_a_bad_step_file_is_named(tmp_path: Path, rows: Any, key: Any, message: str) -> None:
    write_step(tmp_path, rows, key)
    with pytest.raises(ValueError, match=message) as caught:
        load_exam(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_answer_key_is_named(tmp_path: Path) -> None:
    write(tmp_path / "step3.json", numbered(1))
    with pytest.raises(ValueError, match=r"step3\.json: its answer key step3_solutions\.json is missing"):
        load_exam(tmp_path)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    write_step(tmp_path, numbered(1), {"1": "A"})
    (tmp_path / "step1.json").write_bytes(b'[{"no": 1, "question": "caf\xe9"}]')
    with pytest.raises(ValueError, match=r"step1\.json, line 1: byte 0xe9"):
        load_exam(tmp_path)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    write_step(tmp_path, "\ufeff" + json.dumps(numbered(1)), {"1": "A"})
    assert len(load_exam(tmp_path)) == 1


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
words = words.filter(str.strip)
letters = st.sampled_from(["AB", "ABCD", "ABCDE", "DCBA"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # every example overwrites the same files
@given(st.lists(st.tuples(words, letters, words, st.none() | st.booleans()), min_size=1, max_size=6), st.booleans())
def test_what_is_written_is_read(tmp_path: Path, drawn: list[tuple[str, str, str, bool | None]], ascii: bool) -> None:
    questions = [
        Question(f"step1/{i}", text, {letter: f"{option} {letter}" for letter in names}, names[-1], "step1", seen=seen)
        for i, (text, names, option, seen) in enumerate(drawn)
    ]
    rows = [
        {"no": i, "question": q.text, "options": q.options} | ({} if q.seen is None else {"seen": q.seen})
        for i, q in enumerate(questions)
    ]
    write(tmp_path / "step1.json", json.dumps(rows, ensure_ascii=ascii))
    write(tmp_path / "step1_solutions.json", {str(i): q.answer.lower() for i, q in enumerate(questions)})
    assert load_exam(tmp_path) == questions
