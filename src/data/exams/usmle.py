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
from data.records import field, kind, read_json, text_field


def read_steps(folder: Path) -> list[Question]:
    """All `step<number>.json` of a folder, in the order of the numbers."""
    steps = {int(match[1]): file for file in folder.iterdir() if (match := re.fullmatch(r"step(\d+)\.json", file.name))}
    if not steps:
        raise ValueError(f"{folder}: holds no step1.json; name a folder of step files, or an exam file")
    return [question for number in sorted(steps) for question in read_step(steps[number])]


def read_step(path: Path) -> list[Question]:
    """One step file and the `_solutions.json` beside it, without the questions that refer to an image."""
    key_path = path.with_name(f"{path.stem}_solutions.json")
    if not key_path.exists():
        raise ValueError(f'{path}: its answer key {key_path.name} is missing; put it beside, as {{"1": "B", ...}}')
    key = read_object(key_path, str)
    images = _numbers_with_images(path.parent)
    rows = read_json(path, remedy="write one list of questions")
    if not isinstance(rows, list):
        raise ValueError(f"{path}: the root is {kind(rows)}, expected a list of questions")
    questions = []
    for index, row in enumerate(rows, start=1):
        number = str(field(row, "no", f"{path}, row {index}", int, str))
        if number in images.get(path.stem, ()):
            continue
        where = f"{path}, question {number}"
        if number not in key:
            raise ValueError(f"{where}: has no solution; add it to {key_path.name}, or list it in {IMAGES}")
        question = question_of(
            path,
            id=f"{path.stem}/{number}",
            text=text_field(row, "question", where),
            options=read_options(row, where),
            answer=key[number].strip().upper(),  # published keys mix cases
            step=path.stem,
            seen=field(row, "seen", where, bool) if "seen" in row else None,
        )
        questions.append(question)
    return questions


def _numbers_with_images(folder: Path) -> dict[str, set[str]]:
    """Step -> numbers of the questions that refer to an image."""
    listing = folder / IMAGES
    if not listing.exists():
        return {}
    return {step: {str(number) for number in numbers} for step, numbers in read_object(listing, list).items()}
