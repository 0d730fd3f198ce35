"""The JSON report of an exam, which a later run compares itself with.

{"format": 2, "settings": {}, "versions": {}, "accuracy": {group: {}}, "counts": {"letters": {}, ...}, "notes": [],
 "rotations": {}, "comparison": {group: {}}, "published": {group: share},                  each where there is one
 "questions": [{"id", "step", "seen", "answer", "letters", "predicted", "scores", "texts", "accident", "truncated",
                "correct", "margin", "tied"}]}
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.comparison import accuracies
from evaluation.letters import confusion
from evaluation.notes import counts
from evaluation.result import Result
from files import FileError, json_text, shown, versions, write_whole
from files.fields import Place, check_text, field, quoted, text_field
from files.rows import read_json
from files.writing import make_folder

FORMAT = 2
REMEDY = "take a report written with --out"


@dataclass(frozen=True)
class Report:
    """A report read back.

    Attributes:
        results: of every question.
        settings: what the run was told, and "description", the model in one line.
    """

    results: list[Result]
    settings: dict[str, Any]


def write_report(
    path: Path,
    results: Sequence[Result],
    settings: Mapping[str, Any],
    notes: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the report; the file appears whole or not at all. `settings`, and `more` keys, must hold what JSON can."""
    derived = ("correct", "margin", "tied")
    report = {
        "format": FORMAT,
        "settings": dict(settings),
        "versions": versions(),
        "accuracy": {name: asdict(group) | {"value": group.value} for name, group in accuracies(results).items()},
        "counts": counts(results) | {"letters": confusion(results)},
        "notes": list(notes),
        **(more or {}),
        "questions": [asdict(row) | {name: getattr(row, name) for name in derived} for row in results],
    }
    make_folder(path.parent)
    try:
        write_whole(path, json_text(report))
    except OSError as error:
        raise OSError(error.errno, f"the report was not written: {error.strerror}", str(path)) from error


def read_report(path: Path) -> Report:
    """Read what `write_report` wrote.

    Raises:
        FileError: no such file, or not a report of this format.
    """
    place = Place(path)
    try:
        return _parsed(read_json(path, remedy=REMEDY), place)
    except OSError as error:
        raise place.unsuitable(f"cannot be read ({error.strerror})", REMEDY) from error
    except FileError as error:
        raise type(error)(error.problem, file=path, place=error.place, remedy=error.remedy or REMEDY) from None


def read_result(row: Any, place: Place) -> Result:
    """One question of a report or journal.

    Raises:
        FileError: not a result, or one that contradicts itself.
    """
    letters = tuple(_texts(row, "letters", place))
    answer = text_field(row, "answer", place)
    if len(letters) < 2 or len(set(letters)) < len(letters) or answer not in letters:
        raise place.unsuitable(f"its answer {shown(answer)} is not one of two or more letters {shown(list(letters))}")
    scores = _scores(row, place)
    predicted = field(row, "predicted", place, str, type(None))
    if predicted is not None:
        check_text(predicted, quoted("predicted"), place)
    result = Result(
        id=text_field(row, "id", place),
        step=text_field(row, "step", place),
        seen=field(row, "seen", place, bool, type(None)),
        answer=answer,
        letters=letters,
        predicted=predicted,
        scores=scores,
        texts=tuple(_texts(row, "texts", place)),
        accident=field(row, "accident", place, bool),
        truncated=field(row, "truncated", place, bool),
    )
    if scores and (tuple(scores) != letters or predicted != max(scores, key=scores.__getitem__)):
        raise place.damaged("its scores are not those of its letters, or the highest is not the one predicted")
    if bool(scores) == bool(result.texts) or (result.accident and predicted is None):
        raise place.damaged("it must have either scores or texts, and an accident needs a prediction")
    return result


def _parsed(content: Any, place: Place) -> Report:
    if field(content, "format", place, int) != FORMAT:
        raise place.unsuitable(f"its format is {shown(content['format'])}, expected {FORMAT}", "score the exam again")
    settings = field(content, "settings", place, dict)
    text_field(settings, "description", place.at("settings"), default="")
    rows = field(content, "questions", place, list)
    results = [read_result(row, place.at(f"question {number}")) for number, row in enumerate(rows, start=1)]
    if not results:
        raise place.unsuitable("holds no questions")
    if len({result.id for result in results}) < len(results):
        raise place.damaged("two of its questions have one id")
    return Report(results, settings)


def _scores(row: Any, place: Place) -> dict[str, float]:
    scores: dict[str, float] = field(row, "scores", place, dict)
    for letter in scores:
        check_text(letter, "a letter of the scores", place)
        if not math.isfinite(field(scores, letter, place.at("scores"), float)):
            raise place.unsuitable(f"the score of {quoted(letter)} is no finite number")
    return scores


def _texts(row: Any, key: str, place: Place) -> list[str]:
    texts: list[Any] = field(row, key, place, list)
    for text in texts:
        if not isinstance(text, str):
            raise place.unsuitable(f"{quoted(key)} holds {shown(text)}, expected strings")
        if key == "letters":
            check_text(text, "a letter", place)
        else:
            check_text(text.replace("\0", ""), "a text", place)  # a model may say a NUL
    return texts
