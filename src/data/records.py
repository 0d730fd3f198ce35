"""Records: rows of {"instruction", "input", "output"}, read from JSON or JSON Lines and checked one by one.

    *.jsonl        one object per line; blank lines are skipped
    anything else  one JSON list of objects, the form of Alpaca's and of Medical Meadow's files

`input` may be missing and is then empty; further keys are ignored. Whatever cannot become a record stops the reading
with a ValueError that names file, row and key; a key that occurs twice in one object is such a thing. An empty output
is still a record: `build_examples` drops and counts it, together with the rows that do not fit the window, so that one
report tells of everything that was left out.

Below the records stands what every reader of JSON in this package is made of: `read_text`, `read_json`, `read_lines`,
`read_rows` for files, `field`, `text_field` and `check_text` for values.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINE_SUFFIXES = (".jsonl", ".ndjson")
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


@dataclass(frozen=True)
class Record:
    """One instruction with its optional input and the wanted output.

    Attributes:
        instruction, input, output: texts; `input` is "" where there is none.
        source: stem of the file it came from.
        row: place in that file, counted from 1 (the line in a file of lines); 0 if it came from no file.
    """

    instruction: str
    input: str
    output: str
    source: str = ""
    row: int = 0


def load_records(path: str | Path) -> list[Record]:
    """Read every record of one file.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = Path(folder.name, "cards.jsonl")
    >>> _ = file.write_text('{"instruction": "What is anosmia?", "output": "Loss of smell."}')
    >>> load_records(file)
    [Record(instruction='What is anosmia?', input='', output='Loss of smell.', source='cards', row=1)]

    Raises:
        ValueError: the file is not UTF-8, not JSON, not a list, holds no rows, or holds a row with a missing key, a
            field that is not a string, or text that no tokenizer can encode (a lone surrogate, a NUL).
        OSError: the file cannot be read.
    """
    path = Path(path)
    records = [_record(row, where, path.stem, number) for number, where, row in read_rows(path)]
    if not records:
        raise ValueError(f"{path}: holds no rows; a data set needs at least one")
    return records


def read_rows(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield (number from 1, "file, row number", parsed JSON value) for every row of a JSON list or a file of lines."""
    if path.suffix in LINE_SUFFIXES:
        yield from read_lines(path)
        return
    rows = read_json(
        path, remedy='a .json file is one list [{...}, {...}]; name a file of one object per line "*.jsonl"'
    )
    if not isinstance(rows, list):
        raise ValueError(f"{path}: the root is {kind(rows)}, expected a list of objects")
    for number, row in enumerate(rows, start=1):
        yield number, f"{path}, row {number}", row


def read_lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Yield (number from 1, "file, line number", parsed JSON value) for every line that is not blank."""
    # Only \n ends a line: str.splitlines would also cut at U+2028 or U+0085, which JSON strings may hold raw.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield number, where, _parse(line, where, "write one object {...} per line")


def read_json(path: Path, *, remedy: str) -> Any:
    """The one JSON value in a file; ValueError names the file and, where it is not valid JSON, the remedy."""
    return _parse(read_text(path), str(path), remedy)


def read_text(path: Path) -> str:
    """The file's text as UTF-8, with or without a byte order mark; ValueError names the first bad byte's line."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8; "
            "convert the file (iconv -t UTF-8)"
        ) from error


def field(row: Any, key: str, where: str, *types: type, remedy: str = "") -> Any:
    """row[key], which must be there and of one of the types; a boolean does not pass for an int.

    >>> field({"no": True}, "no", "step1.json, row 7", int, str)
    Traceback (most recent call last):
    ...
    ValueError: step1.json, row 7: "no" is a boolean, expected a number or a string
    """
    if not isinstance(row, dict):
        raise ValueError(f'{where}: the row is {kind(row)}, expected an object with the key "{key}"')
    if key not in row:
        raise ValueError(f'{where}: the key "{key}" is missing; the row has {sorted(row)}')
    if type(row[key]) not in types:
        expected = " or ".join(_KINDS[type_] for type_ in types)
        raise ValueError(f'{where}: "{key}" is {kind(row[key])}, expected {expected}{remedy}')
    return row[key]


def text_field(row: Any, key: str, where: str, default: str | None = None) -> str:
    """row[key] as a string that can be tokenized; ValueError names `where` and the key.

    >>> text_field({"output": None}, "output", "cards.json, row 7")
    Traceback (most recent call last):
    ...
    ValueError: cards.json, row 7: "output" is null, expected a string
    """
    if default is not None and isinstance(row, dict) and key not in row:
        return default
    remedy = '; write "" where there is none' if default is not None else ""
    text: str = field(row, key, where, str, remedy=remedy)
    check_text(text, f'{where}: "{key}"')
    return text


def check_text(text: str, where: str) -> None:
    """Refuse what JSON can spell and a tokenizer cannot encode."""
    if "\0" in text:
        raise ValueError(f"{where} holds a NUL at character {text.index(chr(0))}; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
            "half of a character that was cut in two; remove it"
        ) from error


def _record(row: Any, where: str, source: str, number: int) -> Record:
    return Record(
        instruction=text_field(row, "instruction", where),
        input=text_field(row, "input", where, default=""),
        output=text_field(row, "output", where),
        source=source,
        row=number,
    )


def _parse(text: str, where: str, remedy: str) -> Any:
    """The JSON value of a text. A key that occurs twice in one object is an error: one of the two would be lost."""
    repeated: list[str] = []

    def merged(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            repeated.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return row

    try:
        value = json.loads(text, object_pairs_hook=merged)
    except (ValueError, RecursionError) as error:  # RecursionError: a file of ten thousand opening brackets
        raise ValueError(f"{where}: not valid JSON ({error}); {remedy}") from error
    if repeated:
        raise ValueError(f"{where}: the key {repeated[0]!r} occurs twice in one object; keep one of them")
    return value


def kind(value: Any) -> str:
    """What a parsed JSON value is, in JSON's words: "a list", "null"."""
    return _KINDS[type(value)]
