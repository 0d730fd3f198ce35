"""The USMLE self-assessment as MedAlpaca published it (arXiv 2304.08247): a folder of step files and answer keys.

    step1.json                  [{"no": 7, "question": "...", "options": {"A": "...", ...}}, ...]
    step1_solutions.json        {"7": "B", ...}
    question_with_images.json   {"step1": [3, 8], ...}                                         (optional)

Questions that refer to an image cannot be put to a language model. They are left out when their numbers are listed in
the third file, which comes with the exam; MedAlpaca's counts 119/120/135 become 92/110/122 that way. A step or number
listed there that does not exist is an error, for a list that does nothing would let them all be asked. A question may
also carry `"seen": true` or `false`: whether its fact occurs in the training set, so that accuracy can be split.
"""

import re
from pathlib import Path

from data.exams.question import IMAGES, Question, answer_among, question_of, read_object, read_options
from files import shown
from files.fields import Place, check_text, field, listed, text_field
from files.rows import read_rows

_NAME = re.compile(r"step(\d+)\.json", re.IGNORECASE)


def read_steps(folder: Path) -> list[Question]:
    """All `step<number>.json` of a folder, in the order of the numbers."""
    steps = step_files(folder)
    if not steps:
        raise Place(folder).unsuitable("holds no step1.json", "name a folder of step files, or an exam file")
    return [question for file in steps for question in read_step(file)]


def step_files(folder: Path) -> list[Path]:
    """The `step<number>.json` of a folder, in the order of the numbers."""
    found = [(match, file) for file in folder.iterdir() if (match := _NAME.fullmatch(file.name))]
    for _, file in found:
        if not file.name.islower():
            raise Place(file).unsuitable("a step file's name is written small", f"rename it to {file.name.lower()}")
    return [file for _, file in sorted(found, key=lambda step: (int(step[0][1]), step[1]))]


def read_step(path: Path) -> list[Question]:
    """One step file and the `_solutions.json` beside it, without the questions that refer to an image."""
    key_path = _key_path(path)
    if not key_path.exists():
        raise Place(path).unsuitable(f"its answer key {key_path.name} is missing", 'put it beside, as {"1": "B", ...}')
    key = read_object(key_path, str)
    images = numbers_with_images(path)
    numbers, questions = set(), []
    for _, place, row in read_rows(path):
        number = str(field(row, "no", place, int, str))
        check_text(number, '"no"', place)
        numbers.add(number)
        if number in images:
            continue
        place = Place(path, f"question {number if number.isdigit() else shown(number)}")
        if number not in key:
            raise place.unsuitable("has no solution", f"add it to {key_path.name}, or list it in {IMAGES}")
        options = read_options(row, place)
        question = question_of(
            place,
            id=f"{path.stem}/{number}",
            text=text_field(row, "question", place),
            options=options,
            answer=answer_among(options, key[number]),
            step=path.stem,
            seen=field(row, "seen", place, bool) if "seen" in row else None,
        )
        questions.append(question)
    if not numbers:
        raise Place(path).unsuitable("holds no questions", "complete it, or remove it")
    if unknown := images - numbers:
        raise Place(path.with_name(IMAGES), path.stem).unsuitable(
            f"lists questions that {path.name} does not hold [{listed(sorted(unknown))}]", "correct their numbers"
        )
    return questions


def numbers_with_images(path: Path) -> set[str]:
    """Numbers of the questions in a step file that refer to an image; none where a file has no answer key beside it,
    for it is of another layout."""
    listing = path.with_name(IMAGES)
    if not (listing.exists() and _key_path(path).exists()):
        return set()
    images = read_object(listing, list)
    steps = {path.stem, *(file.stem for file in step_files(path.parent))}
    for step, numbers in images.items():
        place = Place(listing, shown(step))
        if step not in steps:
            raise place.unsuitable(
                "there is no such step file beside it", "correct its name, or remove it from the list"
            )
        if wrong := [number for number in numbers if type(number) not in (int, str)]:
            raise place.unsuitable(f"{shown(wrong[0])} is no question's number", "write numbers")
    return {str(number) for number in images.get(path.stem, ())}


def _key_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}_solutions.json")
