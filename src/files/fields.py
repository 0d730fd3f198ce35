"""Values of parsed files: where they stand, of which type they must be, and which text can be tokenized.

A `Place` goes down with the value: every complaint is then a `FileError` with file, place and remedy.
What is quoted from a file is quoted by `shown`, or `quoted` and `listed`: short, and on one line, whatever it holds.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from files.errors import DamagedFileError, UnsuitableFileError, shown

SHOWN_CHARACTERS = 60
SHOWN_ITEMS = 8
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


class Place(NamedTuple):
    """Somewhere in a file.

    Attributes:
        file: None for a value that came from no file; errors are then plain ValueErrors.
        within: "row 3", "article 17, CONTEXTS"; "" for the file as a whole.
    """

    file: Path | None
    within: str = ""

    def at(self, part: str) -> "Place":
        """A place within this one.

        >>> Place(Path("step1.json"), "question 7").at("options").within
        'question 7, options'
        """
        return Place(self.file, f"{self.within}, {part}" if self.within else part)

    def unsuitable(self, problem: str, remedy: str = "") -> ValueError:
        """The error for content that is sound and cannot serve."""
        if self.file is None:
            return ValueError(f"{self.within}: {problem}{f'; {remedy}' if remedy else ''}")
        return UnsuitableFileError(problem, file=self.file, place=self.within, remedy=remedy)

    def damaged(self, problem: str, remedy: str = "") -> ValueError:
        """The error for content that contradicts its format or itself."""
        if self.file is None:
            return self.unsuitable(problem, remedy)
        return DamagedFileError(problem, file=self.file, place=self.within, remedy=remedy)


def field(row: Any, key: str, place: Place, *types: type, remedy: str = "") -> Any:
    """row[key], which must be there and of one of the types; a boolean does not pass for an int.

    >>> field({"no": True}, "no", Place(Path("step1.json"), "row 7"), int, str)
    Traceback (most recent call last):
    ...
    files.errors.UnsuitableFileError: step1.json, row 7: "no" is a boolean, expected a number or a string
    """
    level = "the row" if place.within else "the root"
    if not isinstance(row, dict):
        raise place.unsuitable(f"{level} is {kind(row)}, expected an object with the key {quoted(key)}", remedy)
    if key not in row:
        raise place.unsuitable(f"the key {quoted(key)} is missing; {level} has [{listed(sorted(row))}]", remedy)
    if type(row[key]) not in types:
        expected = " or ".join(_KINDS[type_] for type_ in types)
        raise place.unsuitable(f"{quoted(key)} is {kind(row[key])}, expected {expected}", remedy)
    return row[key]


def text_field(row: Any, key: str, place: Place, default: str | None = None) -> str:
    """row[key] as a string that can be tokenized; `default`, if given, stands in for a missing key.

    >>> text_field({"output": None}, "output", Place(Path("cards.json"), "row 7"))
    Traceback (most recent call last):
    ...
    files.errors.UnsuitableFileError: cards.json, row 7: "output" is null, expected a string
    """
    if default is not None and isinstance(row, dict) and key not in row:
        return default
    remedy = 'write "" where there is none' if default is not None and isinstance(row, dict) else ""
    text: str = field(row, key, place, str, remedy=remedy)
    check_text(text, quoted(key), place)
    return text


def check_text(text: str, name: str, place: Place) -> None:
    """Refuse what JSON can spell and a tokenizer cannot encode: a NUL, half a surrogate pair. `name`: what it is."""
    if "\0" in text:
        raise place.damaged(f"{name} holds a NUL at character {text.index(chr(0))}", "remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise place.damaged(
            f"{name} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
            "half of a character that was cut in two",
            "remove it",
        ) from None


def kind(value: Any) -> str:
    """What a parsed JSON value is, in JSON's words: "a list", "null"."""
    return _KINDS.get(type(value), type(value).__name__)


def quoted(key: str) -> str:
    """A key in JSON's quotes, cut as `shown` cuts.

    >>> quoted("answer_idx")
    '"answer_idx"'
    """
    return f'"{repr(key[:SHOWN_CHARACTERS])[1:-1]}{"..." if len(key) > SHOWN_CHARACTERS else ""}"'


def listed(values: Iterable[str]) -> str:
    """The first few of some strings, each `shown`.

    >>> listed("abc")
    "'a', 'b', 'c'"
    """
    values = list(values)
    more = f", and {len(values) - SHOWN_ITEMS:,} more" if len(values) > SHOWN_ITEMS else ""
    return ", ".join(map(shown, values[:SHOWN_ITEMS])) + more
