"""MedQA: rows of {"question", "options": {"A": ...}, "answer_idx": "A", "meta_info": "step1"}, a list or lines."""

from collections.abc import Iterable
from typing import Any

from data.exams.question import Question, answer_among, question_of, read_options
from files.fields import Place, text_field


def read_medqa(stem: str, rows: Iterable[tuple[int, Place, Any]]) -> list[Question]:
    """One question per row, numbered without the file's blank lines; `meta_info` is the step, where it is given."""
    questions = []
    for index, (_, place, row) in enumerate(rows, start=1):
        options = read_options(row, place)
        question = question_of(
            place,
            id=f"{stem}/{index}",
            text=text_field(row, "question", place),
            options=options,
            answer=answer_among(options, text_field(row, "answer_idx", place)),
            step=text_field(row, "meta_info", place, default=""),
        )
        questions.append(question)
    return questions
