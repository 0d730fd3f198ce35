"""Records: rows of {"instruction", "input", "output"}, read from JSON or JSON Lines and checked one by one.

    *.jsonl        one object per line; blank lines are skipped
    anything else  one JSON list of objects, the form of Alpaca's and of Medical Meadow's files

`input` may be missing and is then empty; further keys are ignored. Whatever cannot become a record stops the reading
with an error that names file, row and key. An empty output is still a record: `build_examples` drops and counts it,
together with the rows that do not fit the window, so that one report tells of everything that was left out.

Memory: the records, and one row of the file while it is parsed (`reading.py`). Records take 1 to 2 bytes per byte of a
file of prose in Latin script; 4 per character where a text holds a character such as an emoji; 8 at the worst, in rows
of two letters, for every string has a header of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from files.fields import Place, text_field
from files.rows import read_rows


@dataclass(frozen=True, slots=True)
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
        FileError: the file is not UTF-8, not JSON, not a list, holds no rows, or holds a row with a missing key, a
            field that is not a string, or text that no tokenizer can encode (a lone surrogate, a NUL).
        OSError: the file cannot be read.
    """
    path = Path(path)
    records = [_record(row, place, path.stem, number) for number, place, row in read_rows(path)]
    if not records:
        raise Place(path).unsuitable("holds no rows", "a data set needs at least one")
    return records


def _record(row: Any, place: Place, source: str, number: int) -> Record:
    return Record(
        instruction=text_field(row, "instruction", place),
        input=text_field(row, "input", place, default=""),
        output=text_field(row, "output", place),
        source=source,
        row=number,
    )
