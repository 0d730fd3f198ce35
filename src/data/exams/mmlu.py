"""MMLU (arXiv 2009.03300): CSV files without a header, a subject each: question, A, B, C, D, the answer's letter.

    clinical_knowledge_test.csv      step: clinical_knowledge; a folder of such files of one split is one exam

A field that holds a comma, a quote or a line break is quoted, and a quote in it doubled, as RFC 4180 has it.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from data.exams.question import Question, distinct_options, question_of
from files import shown
from files.fields import Place, check_text, listed
from files.rows import read_text

LETTERS = "ABCD"
SUFFIX = ".csv"
COLUMNS = ("the question", *(f"option {letter}" for letter in LETTERS), "the answer's letter")
_NAME = re.compile(r"(?P<subject>.+)_(?P<split>dev|val|test|train)")


def read_subjects(folder: Path) -> list[Question]:
    """All CSV files of a folder, by name; they must be of one split, for dev holds the examples that test is asked
    with."""
    files = sorted(file for file in folder.iterdir() if file.suffix == SUFFIX)
    splits = sorted({_subject_and_split(file)[1] for file in files})
    if len(splits) > 1:
        raise Place(folder).unsuitable(
            f"holds files of several splits [{listed(splits)}]", "put each split into a folder, or name one file"
        )
    return [question for file in files for question in read_subject(file)]


def read_subject(path: Path) -> list[Question]:
    """One file. Ids are "clinical_knowledge_test/12", by row."""
    step = _subject_and_split(path)[0]
    questions = []
    for number, (place, row) in enumerate(_rows(path), start=1):
        text, *texts, answer = row
        if number == 1 and re.fullmatch(r"[^\W\d]{2,}", answer.strip()):
            raise place.unsuitable(
                f"the answer is {shown(answer)}, no letter",
                "remove this line if it is a header: MMLU's files have none",
            )
        answer = answer.strip().upper()
        options = dict(zip(LETTERS, texts, strict=True))
        question = question_of(
            place,
            id=f"{path.stem}/{number}",
            text=text,
            options=distinct_options(options, answer),
            answer=answer,
            step=step,
        )
        questions.append(question)
    return questions


def _rows(path: Path) -> Iterator[tuple[Place, list[str]]]:
    """The rows, blank lines aside, each with the line it begins in."""
    # Line breaks are left to the parser: one within quotes is text.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    begins = 1
    while True:
        place = Place(path, f"line {begins}")
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = 'quote a field that holds a comma or ", and double each " in it'
            raise place.damaged(f"not valid CSV ({error})", remedy) from None
        begins = reader.line_num + 1
        if len(row) <= 1 and not "".join(row).strip():
            continue
        if len(row) != len(COLUMNS):
            raise place.unsuitable(
                f"{len(row)} column{'' if len(row) == 1 else 's'}, expected {len(COLUMNS)}: {', '.join(COLUMNS)}",
                "quote a field that holds a comma",
            )
        for name, value in zip(COLUMNS, row, strict=True):
            check_text(value, name, place)
        yield place, row


def _subject_and_split(path: Path) -> tuple[str, str]:
    check_text(path.stem, "the file's name", Place(path.parent, shown(path.name)))
    match = _NAME.fullmatch(path.stem)
    return (match["subject"], match["split"]) if match else (path.stem, "")
