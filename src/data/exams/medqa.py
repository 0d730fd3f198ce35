"""MedQA: rows of {"question", "options": {"A": ...}, "answer_idx": "A", "meta_info": "step1"}, a list or lines."""

from pathlib import Path
from typing import Any

from data.exams.question import Question, question_of, read_options
from data.records import text_field


def read_medqa(path: Path, rows: list[dict[str, Any]]) -> list[Question]:
    """One question per row; `meta_info` is the step, where it is given."""
    questions = []
    for index, row in enumerate(rows, start=1):
        where = f"{path}, question {index}"
        question = question_of(
            path,
            id=f"{path.stem}/{index}",
            text=text_field(row, "question", where),
            options=read_options(row, where),
            answer=text_field(row, "answer_idx", where),
            step=text_field(row, "meta_info", where, default=""),
        )
        questions.append(question)
    return questions
