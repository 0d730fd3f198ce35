"""The USMLE self-assessment as MedAlpaca published it (arXiv 2304.08247): a folder of step files and answer keys.

    step1.json                  [{"no": 7, "question": "...", "options": {"A": "...", ...}}, ...]
    step1_solutions.json        {"7": "B", ...}
    question_with_images.json   {"step1": [3, 8], ...}                                         (optional)

Questions that refer to an image cannot be put to a language model. They are left out when their numbers are listed in
the third file, which comes with the exam; MedAlpaca's counts 119/120/135 become 92/110/122 that way. A question may
also carry `"seen": true` or `false`: whether its fact occurs in the training set, so that accuracy can be split.
"""

import re
from pathlib import Path

from data.exams.question import IMAGES, Question, question_of, read_object, read_options
from files import shown
from files.fields import Place, check_text, field, text_field
from files.rows import read_rows


def read_steps(folder: Path) -> list[Question]:
    """All `step<number>.json` of a folder, in the order of the numbers."""
    found = ((re.fullmatch(r"step(\d+)\.json", file.name), file) for file in folder.iterdir())
    steps = sorted((int(match[1]), file) for match, file in found if match)
    if not steps:
        raise Place(folder).unsuitable("holds no step1.json", "name a folder of step files, or an exam file")
    return [question for _, file in steps for question in read_step(file)]


def read_step(path: Path) -> list[Question]:
    """One step file and the `_solutions.json` beside it, without the questions that refer to an image."""
    key_path = path.with_name(f"{path.stem}_solutions.json")
    if not key_path.exists():
        raise Place(path).unsuitable(f"its answer key {key_path.name} is missing", 'put it beside, as {"1": "B", ...}')
    key = read_object(key_path, str)
    images = _numbers_with_images(path.parent)
    questions = []
    for _, place, row in read_rows(path):
        number = str(field(row, "no", place, int, str))
        check_text(number, '"no"', place)
        if number in images.get(path.stem, ()):
            continue
        place = Place(path, f"question {number if number.isdigit() else shown(number)}")
        if number not in key:
            raise place.unsuitable("has no solution", f"add it to {key_path.name}, or list it in {IMAGES}")
        question = question_of(
            place,
            id=f"{path.stem}/{number}",
            text=text_field(row, "question", place),
            options=read_options(row, place),
            answer=key[number].strip().upper(),  # published keys mix cases
            step=path.stem,
            seen=field(row, "seen", place, bool) if "seen" in row else None,
        )
        questions.append(question)
    return questions


def _numbers_with_images(folder: Path) -> dict[str, set[str]]:
    """Step -> numbers of the questions that refer to an image."""
    listing = folder / IMAGES
    if not listing.exists():
        return {}
    images = {}
    for step, numbers in read_object(listing, list).items():
        if wrong := [number for number in numbers if type(number) not in (int, str)]:
            raise Place(listing, shown(step)).unsuitable(f"{shown(wrong[0])} is no question's number", "write numbers")
        images[step] = {str(number) for number in numbers}
    return images
