"""MedMCQA (arXiv 2203.14371): rows of {"question", "opa", ..., "opd", "cop", "subject_name", "id"}, a list or lines.

`cop`, the right option, comes in two countings that no row tells apart: the files of its authors count from 1 (their
`dataset.py` subtracts 1), the data set on Hugging Face counts from 0 (a ClassLabel of a, b, c, d). So the whole file
is looked at: a 0 in it means that it counts from 0, a 4 that it counts from 1. A file with both contradicts itself,
and one with neither, such as a handful of rows cut out, is refused: read the wrong way, it would grade every question
wrong without a word. A letter ("cop": "b") needs no counting.

The subject is the step. The test split is published without answers.
"""

from collections.abc import Iterable
from typing import Any

from data.exams.question import Question, distinct_options, question_of
from files import shown
from files.fields import Place, field, text_field

LETTERS = {"A": "opa", "B": "opb", "C": "opc", "D": "opd"}
KEYS = {"question", "cop", *LETTERS.values()}
"""By which a row is recognised."""


def read_medmcqa(stem: str, rows: Iterable[tuple[int, Place, Any]]) -> list[Question]:
    """One question per row; the id is the row's own, else its number without the file's blank lines."""
    answered = [(place, row, _option(row, place)) for _, place, row in rows]
    first = _first_number([(place, option) for place, _, option in answered])
    questions = []
    for index, (place, row, option) in enumerate(answered, start=1):
        answer = option if isinstance(option, str) else "ABCD"[option - first]
        options = {letter: text_field(row, key, place) for letter, key in LETTERS.items()}
        question = question_of(
            place,
            id=f"{stem}/{text_field(row, 'id', place, default=str(index))}",
            text=text_field(row, "question", place),
            options=distinct_options(options, answer),
            answer=answer,
            step=text_field(row, "subject_name", place, default=""),
        )
        questions.append(question)
    return questions


def _option(row: Any, place: Place) -> int | str:
    """The row's right option: a letter, or a number in a counting not known yet."""
    option: int | str | None = field(row, "cop", place, int, str, type(None), remedy="take a split with answers")
    if option is None or option == -1:
        raise place.unsuitable("the answer is not published (cop)", "take the split train or dev (validation)")
    if isinstance(option, str):
        if option.upper() not in LETTERS:
            raise place.unsuitable(f'"cop" is {shown(option)}', "it must be a number, or one of the letters a, b, c, d")
        return option.upper()
    if not 0 <= option <= 4:
        raise place.unsuitable(f'"cop" is {shown(option)}', "it must count the four options, from 0 or from 1")
    return option


def _first_number(options: list[tuple[Place, int | str]]) -> int:
    """0 or 1: the number that this file gives to the first option."""
    numbers = {option: place for place, option in reversed(options) if isinstance(option, int)}  # its first place
    if 0 in numbers and 4 in numbers:
        raise numbers[4].damaged(
            f'"cop" is 4 here and 0 in {numbers[0].within}: they count from 1 and from 0',
            "do not join files of two origins",
        )
    if numbers and not numbers.keys() & {0, 4}:
        raise Place(options[0][0].file).unsuitable(
            f"its answers (cop) are {', '.join(map(str, sorted(numbers)))}, which may count from 0 or from 1",
            'keep more of its rows, or write letters ("cop": "b")',
        )
    return 0 if 0 in numbers else 1
