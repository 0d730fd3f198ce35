"""Which tasks are not kept, and why: Stanford's filters in their order, and two that training needs.

The first that applies gives the reason. Whether a task resembles one already there is asked last, by the pipeline.
"""

import re
import string

from data.records import Record
from files.fields import Place, check_text

LEAST_WORDS, MOST_WORDS = 4, 150
NOT_TEXT = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot"),
    *("go to", "video", "audio", "music", "flowchart", "diagram"),
)
"""Words of an instruction that only more than text could follow."""
_NOT_TEXT = re.compile(rf"\b({'|'.join(NOT_TEXT)})\b", re.IGNORECASE)

REASONS = {
    "cut": "the last task of a completion that was cut off",
    "malformed": "not the three labels with the right number",
    "short": f"an instruction of fewer than {LEAST_WORDS} words",
    "long": f"an instruction of more than {MOST_WORDS} words",
    "not text": "a word such as image, file or draw",
    "program": 'begins with "Write a program"',
    "punctuation": "begins with a punctuation mark",
    "not ASCII": "begins with a character outside ASCII",
    "no output": "an empty output, of which nothing can be learnt",
    "unreadable": "a character that no tokenizer can encode",
    "similar": "too similar to a seed or to a task kept before",
}
"""Every reason to drop a piece of a completion, in the order of asking."""


def reason_to_drop(task: Record) -> str | None:
    """The first reason against a task by itself, or None.

    >>> reason_to_drop(Record("Draw a map of the ward.", "", "...")), reason_to_drop(Record("Define fever.", "", "..."))
    ('not text', 'short')
    >>> reason_to_drop(Record("What is a fever?", "", "A raised temperature."))
    """
    words = len(task.instruction.split())
    if words < LEAST_WORDS:
        return "short"
    if words > MOST_WORDS:
        return "long"
    if _NOT_TEXT.search(task.instruction):
        return "not text"
    if task.instruction.startswith("Write a program"):
        return "program"
    if task.instruction[0] in string.punctuation:
        return "punctuation"
    if not task.instruction[0].isascii():
        return "not ASCII"
    if not task.output:
        return "no output"
    return None if all(map(_readable, (task.instruction, task.input, task.output))) else "unreadable"


def _readable(text: str) -> bool:
    """Whether `load_records` will take it."""
    try:
        check_text(text, "a text", Place(None))
    except ValueError:
        return False
    return True
