"""MedQA as lines and as a list."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.exams import load_exam
from files import FileError

MEDQA = {"question": "Q?", "answer": "x", "options": {"A": "x", "B": "y"}, "meta_info": "step1", "answer_idx": "A"}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_reads_medqa_lines_and_lists(tmp_path: Path) -> None:
    # A line separator within a string ends no line of JSON.
    rows = [MEDQA, MEDQA | {"answer_idx": "B", "question": "Two\u2028lines?"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    from_lines = load_exam(write(tmp_path / "medqa.jsonl", lines))
    assert from_lines == load_exam(write(tmp_path / "medqa.json", rows))
    assert [(q.id, q.answer, q.step) for q in from_lines] == [("medqa/1", "A", "step1"), ("medqa/2", "B", "step1")]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "medqa.jsonl", f"{json.dumps(MEDQA)}\n\n{{")
    with pytest.raises(ValueError, match=r"medqa\.jsonl, line 3: not valid JSON"):
        load_exam(path)
    path = write(tmp_path / "medqa.jsonl", f"{json.dumps(MEDQA)}\n[]\n")
    with pytest.raises(FileError, match=r"medqa\.jsonl, line 2: the row is a list, expected an object"):
        load_exam(path)
    path = write(tmp_path / "medqa.jsonl", f"{json.dumps(MEDQA)}\n{json.dumps(MEDQA | {'answer_idx': 'F'})}\n")
    with pytest.raises(ValueError, match=r"medqa\.jsonl, line 2: the answer 'F' is not among the options 'A', 'B'"):
        load_exam(path)


def test_an_answer_may_be_written_small_or_be_the_options_own_small_letter(tmp_path: Path) -> None:
    rows = [MEDQA | {"answer_idx": " b "}, MEDQA | {"options": {"a": "x", "b": "y"}, "answer_idx": "B"}]
    assert [question.answer for question in load_exam(write(tmp_path / "medqa.json", rows))] == ["B", "b"]


def test_lines_without_the_suffix_get_a_hint(tmp_path: Path) -> None:
    path = write(tmp_path / "medqa.json", f"{json.dumps(MEDQA)}\n{json.dumps(MEDQA)}\n")
    with pytest.raises(ValueError, match=r"needs the suffix \.jsonl"):
        load_exam(path)


def test_real_medqa(real_data: Path) -> None:
    exam = load_exam(real_data / "exams" / "medqa_5options_test.jsonl")
    assert len(exam) == 1273
    assert Counter(question.step for question in exam) == {"step1": 679, "step2&3": 594}
    assert Counter(question.answer for question in exam) == {"A": 273, "B": 277, "C": 252, "D": 269, "E": 202}
    assert {tuple(question.options) for question in exam} == {("A", "B", "C", "D", "E")}
    assert exam[0].options[exam[0].answer] == "Tell the attending that he cannot fail to disclose this mistake"
