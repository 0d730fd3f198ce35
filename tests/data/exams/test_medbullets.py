"""Medbullets' columns."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.exams import load_exam


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_medbullets_columns_must_be_complete(tmp_path: Path) -> None:
    columns = {"question": {"0": "Q?", "1": "R?"}, "answer_idx": {"0": "A", "1": "B"}}
    columns |= {"opa": {"0": "x", "1": "x"}, "opb": {"0": "y", "1": "y"}}
    path = write(tmp_path / "bullets.json", columns)
    assert [(q.id, q.options, q.answer) for q in load_exam(path)] == [
        ("bullets/0", {"A": "x", "B": "y"}, "A"),
        ("bullets/1", {"A": "x", "B": "y"}, "B"),
    ]
    write(path, columns | {"opb": {"0": "y"}})
    with pytest.raises(ValueError, match=r'bullets\.json, opb: the key "1" is missing'):
        load_exam(path)


def test_real_medbullets(real_data: Path) -> None:
    exam = load_exam(real_data / "exams" / "medbullets_op5.json")
    assert len(exam) == 308
    assert Counter(question.answer for question in exam) == {"A": 61, "B": 74, "C": 53, "D": 67, "E": 53}
    assert exam[0].options[exam[0].answer] == "Acetazolamide"
    columns = json.loads((real_data / "exams" / "medbullets_op5.json").read_text())
    assert [q.options[q.answer] for q in exam] == list(columns["answer"].values())  # letters and texts agree
