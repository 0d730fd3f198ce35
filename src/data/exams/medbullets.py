"""Medbullets: one JSON object of columns `question`, `opa`, `opb`, ... and `answer_idx`."""

import re
from pathlib import Path
from typing import Any

from data.exams.question import Question, question_of
from data.records import text_field


def read_medbullets(path: Path, columns: dict[str, dict[str, Any]]) -> list[Question]:
    """One question per row number; each column is an object from row number to value."""
    letters = {name[2].upper(): name for name in sorted(columns) if re.fullmatch("op[a-z]", name)}
    questions = []
    for row in columns["question"]:
        question = question_of(
            path,
            id=f"{path.stem}/{row}",
            text=text_field(columns["question"], row, f"{path}, question"),
            options={letter: text_field(columns[name], row, f"{path}, {name}") for letter, name in letters.items()},
            answer=text_field(columns["answer_idx"], row, f"{path}, answer_idx"),
        )
        questions.append(question)
    return questions
