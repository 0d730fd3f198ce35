"""`Question`, and the pieces from which the readers make one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.records import check_text, field, kind, read_json, text_field

IMAGES = "question_with_images.json"  # lists the questions of a USMLE folder that refer to an image


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Attributes:
        id: unique within its exam, stable between runs: "step1/12".
        text: the question, options not included.
        options: letter -> text, in the order printed.
        answer: letter of the right option.
        step: part of the exam it belongs to; accuracies are reported per step.
        context: text to be read before the question, or "".
        seen: whether its fact occurs in the training set; None where unknown.

    Raises:
        ValueError: an empty text, fewer than two options, or an answer that is none of them.

    >>> Question("1", "Which organ makes insulin?", {"A": "Liver", "B": "Pancreas"}, "C")
    Traceback (most recent call last):
    ValueError: question 1: the answer 'C' is not among the options A, B; correct the answer key
    """

    id: str
    text: str
    options: dict[str, str]
    answer: str
    step: str = ""
    context: str = ""
    seen: bool | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError(f"question {self.id}: the text is empty; write it, or remove the question")
        if len(self.options) < 2:
            raise ValueError(
                f"question {self.id}: {len(self.options)} option(s), at least 2 are needed to choose from; complete "
                f"them, or remove the question (one that needs an image belongs into {IMAGES})"
            )
        for letter, option in self.options.items():
            if not option.strip():
                raise ValueError(f"question {self.id}: option {letter} is empty; write it, or remove the option")
        if self.answer not in self.options:
            raise ValueError(
                f"question {self.id}: the answer {self.answer!r} is not among the options {', '.join(self.options)}; "
                "correct the answer key"
            )


def question_of(path: Path, **fields: Any) -> Question:
    """A Question whose errors name the file that it was read from."""
    try:
        return Question(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_options(row: dict[str, Any], where: str) -> dict[str, str]:
    """row["options"], an object from letters to texts, both fit to be tokenized."""
    options = field(row, "options", where, dict)
    for letter in options:
        check_text(letter, f"{where}: a letter of the options")
    return {letter: text_field(options, letter, f"{where}, options") for letter in options}


def read_object(path: Path, value_type: type) -> dict[str, Any]:
    """The JSON object in a file, all its values of the given type: an answer key, a list of numbers per step."""
    content = read_json(path, remedy='write one object {"1": ...}')
    if not isinstance(content, dict):
        raise ValueError(f'{path}: the root is {kind(content)}, expected an object such as {{"1": ...}}')
    for key in content:
        field(content, key, str(path), value_type)
    return content
