"""A completion back to tasks: split at ###, then at the three labels with the task's number.

The prompt ended with "{n}. Instruction:", n one above the demonstrations, so the completion's first piece is the rest
of task n, the next one task n + 1, and so on to the last number of the list. A piece is a task if it has, each at the
beginning of a line and with its number, "Instruction:", "Input:" and "Output:" in this order and once.

Stanford's parser, from which this differs, looks for the labels anywhere in a line and takes them in any order; and it
asks the model to stop at "20.", which also ends a text at "in 2020." and leaves half a task that looks whole.
"""

import re
from collections import Counter
from typing import NamedTuple

from data.records import Record
from data.self_instruct.prompts import NO_INPUT, SEPARATOR

LABELS = ["Instruction", "Input", "Output"]


class Completion(NamedTuple):
    """What a model said after a prompt.

    Attributes:
        cut: whether it ended because there was no room for more, rather than by itself.
    """

    text: str
    cut: bool


def parse_completion(completion: Completion, *, shots: int, tasks: int) -> tuple[list[Record], Counter[str]]:
    """The tasks of a completion, and how many pieces are none, by reason ("cut", "malformed").

    Args:
        shots: demonstrations in the prompt; the first task's number is one more.
        tasks: the last number that counts; what follows it is left out.

    >>> text = " Add.\\n2. Input:\\n1, 2\\n2. Output:\\n3\\n###\\n3. Instruction: Name a"
    >>> parse_completion(Completion(text, cut=True), shots=1, tasks=20)
    ([Record(instruction='Add.', input='1, 2', output='3', source='', row=0)], Counter({'cut': 1}))
    """
    pieces = f"{shots + 1}. {LABELS[0]}:{completion.text}".split(SEPARATOR)
    found: list[Record] = []
    dropped: Counter[str] = Counter()
    for number, piece in enumerate(pieces[: tasks - shots], start=shots + 1):
        if not piece.strip():
            continue
        if completion.cut and number == shots + len(pieces):
            dropped["cut"] += 1
        elif (task := _task(piece, number)) is None:
            dropped["malformed"] += 1
        else:
            found.append(task)
    return found, dropped


def _task(piece: str, number: int) -> Record | None:
    before, *parts = re.split(rf"^[ \t]*{number}\.\s+({'|'.join(LABELS)}):", piece, flags=re.MULTILINE)
    if before.strip() or parts[::2] != LABELS:
        return None
    instruction, given, output = (text.strip() for text in parts[1::2])
    return Record(instruction, "" if given.lower() == NO_INPUT else given, output)
