"""Medbullets: one JSON object of columns `question`, `opa`, `opb`, ... and `answer_idx`."""

import re
from pathlib import Path
from typing import Any

from data.exams.question import Question, answer_among, question_of
from files import shown
from files.fields import Place, check_text, text_field


def read_medbullets(path: Path, columns: dict[str, dict[str, Any]]) -> list[Question]:
    """One question per row number; each column is an object from row number to value."""
    letters = {name[2].upper(): name for name in sorted(columns) if re.fullmatch("op[a-z]", name)}
    place = Place(path)
    questions = []
    for row in columns["question"]:
        check_text(row, "a row's number", place.at("question"))
        options = {letter: text_field(columns[name], row, place.at(name)) for letter, name in letters.items()}
        question = question_of(
            place.at(f"question {shown(row)}"),
            id=f"{path.stem}/{row}",
            text=text_field(columns["question"], row, place.at("question")),
            options=options,
            answer=answer_among(options, text_field(columns["answer_idx"], row, place.at("answer_idx"))),
        )
        questions.append(question)
    return questions
