"""Seed tasks: what people wrote, and what the model is shown.

A row of the file (JSON lines, or one JSON list) is a task in either of two forms:

    {"instruction", "instances": [{"input", "output"}, ...]}     Self-Instruct's; the first instance is taken
    {"instruction", "input", "output"}                           Alpaca's; `input` may be missing
"""

from pathlib import Path
from typing import Any

from data.records import Record
from files.fields import Place, field, text_field
from files.rows import read_rows


def load_seeds(path: str | Path) -> list[Record]:
    """Read every seed task of a file.

    Raises:
        FileError: as for `load_records`; or a row has no instance, or an empty instruction or output.
        OSError: the file cannot be read.
    """
    path = Path(path)
    seeds = [_seed(row, place, path.stem, number) for number, place, row in read_rows(path)]
    if not seeds:
        raise Place(path).unsuitable("holds no tasks", "the demonstrations of the prompts are drawn from it")
    return seeds


def _seed(row: Any, place: Place, source: str, number: int) -> Record:
    instruction = text_field(row, "instruction", place)
    if "instances" in row:
        instances = field(row, "instances", place, list)
        if not instances:
            raise place.unsuitable('"instances" is empty', "give the task an input and an output")
        row, place = instances[0], place.at("instance 1")
    output = text_field(row, "output", place)
    for name, text in (("instruction", instruction), ("output", output)):
        if not text.strip():
            raise place.unsuitable(f'"{name}" is empty', "a demonstration needs both; fill it in or remove the row")
    return Record(instruction, text_field(row, "input", place, default=""), output, source, number)
