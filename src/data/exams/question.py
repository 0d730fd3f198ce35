"""`Question`, and the pieces from which the readers make one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from files import shown
from files.fields import Place, check_text, field, kind, listed, text_field
from files.rows import read_json

MAX_OPTIONS = 26  # one per letter
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
        ValueError: an empty text, fewer than two options or more than the alphabet has letters, an empty option or one
            text twice, or an answer that is none of them.

    >>> Question("1", "Which organ makes insulin?", {"A": "Liver", "B": "Pancreas"}, "C")
    Traceback (most recent call last):
    ValueError: question 1: the answer 'C' is not among the options 'A', 'B'; correct the answer key
    """

    id: str
    text: str
    options: dict[str, str]
    answer: str
    step: str = ""
    context: str = ""
    seen: bool | None = None

    def __post_init__(self) -> None:
        if fault := _fault(self.text, self.options, self.answer):
            raise ValueError(f"question {self.id}: {'; '.join(fault)}")


def _fault(text: str, options: dict[str, str], answer: str) -> tuple[str, str] | None:
    """What is wrong with a question, and the remedy."""
    if not text.strip():
        return "the text is empty", "write it, or remove the question"
    if len(options) < 2:
        return (
            f"{len(options)} option(s), at least 2 are needed to choose from",
            f"complete them, or remove the question (one that needs an image belongs into {IMAGES})",
        )
    if len(options) > MAX_OPTIONS:
        return _too_many(options)
    letters: dict[str, str] = {}
    for letter, option in options.items():
        if not option.strip():
            return f"option {shown(letter)} is empty", "write it, or remove the option"
        if option in letters:
            return f"options {shown(letters[option])} and {shown(letter)} are the same text", "remove one of them"
        letters[option] = letter
    if answer not in options:
        return f"the answer {shown(answer)} is not among the options {listed(options)}", "correct the answer key"
    return None


def _too_many(options: dict[str, Any]) -> tuple[str, str]:
    return f"{len(options):,} options, at most {MAX_OPTIONS} have letters", "remove some"


def question_of(place: Place, **fields: Any) -> Question:
    """A Question from strings that can be tokenized; its errors name the place that it was read from."""
    if fault := _fault(fields["text"], fields["options"], fields["answer"]):
        raise place.unsuitable(*fault)
    return Question(**fields)


def read_options(row: dict[str, Any], place: Place) -> dict[str, str]:
    """row["options"], an object from letters to texts, both fit to be tokenized."""
    options = field(row, "options", place, dict)
    if len(options) > MAX_OPTIONS:  # before looking at each
        raise place.unsuitable(*_too_many(options))
    for letter in options:
        check_text(letter, "a letter of the options", place)
    return {letter: text_field(options, letter, place.at("options")) for letter in options}


def answer_among(options: dict[str, str], answer: str) -> str:
    """The answer as its option's letter is written: published keys mix cases, and put spaces around.

    >>> answer_among({"A": "Liver", "B": "Pancreas"}, " b ")
    'B'
    """
    key = answer.strip()
    return key if key in options else next((letter for letter in options if letter.lower() == key.lower()), answer)


def distinct_options(options: dict[str, str], answer: str) -> dict[str, str]:
    """The options that can be chosen between: without the empty ones, and of equal texts only the right or first one.

    MedMCQA and MMLU were published with a few such rows; their questions can be asked, the doubtful options cannot.
    An empty text that is the answer stays, to be refused.

    >>> distinct_options({"A": "None", "B": "Both", "C": "None", "D": ""}, "C")
    {'B': 'Both', 'C': 'None'}
    """
    kept = {options[answer]: answer} if answer in options else {}
    for letter, text in options.items():
        if text.strip():
            kept.setdefault(text, letter)
    return {letter: text for letter, text in options.items() if kept.get(text) == letter}


def read_object(path: Path, value_type: type) -> dict[str, Any]:
    """The JSON object in a file, all its values of the given type: an answer key, a list of numbers per step."""
    content, place = read_json(path, remedy='write one object {"1": ...}'), Place(path)
    if not isinstance(content, dict):
        raise place.unsuitable(f"the root is {kind(content)}, expected an object", 'write {"1": ...}')
    for key in content:
        field(content, key, place, value_type)
    return content
