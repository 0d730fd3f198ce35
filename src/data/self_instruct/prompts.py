"""The prompt: a list of tasks whose first few are there, for the model to go on with.

    {preamble}

    ###
    1. Instruction: Name a fruit.
    1. Input:
    <noinput>
    1. Output:
    Apple
    ###
    2. Instruction:

This is the form of Stanford's Alpaca, whose demonstrations are seed tasks only: the paper (arXiv 2212.10560, section
2.2) mixes in 2 of 8 that the model wrote. The wording of the preambles is ours.

Which tasks request n shows depends on the seed and n alone, so that a run can go on anywhere without a saved generator.
"""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from data.records import Record
from files.fields import Place, check_text
from files.rows import read_text

SEPARATOR = "###"
NO_INPUT = "<noinput>"
MOST_REDRAWS = 1000
PREAMBLES = {
    "full": """\
Write a list of {tasks} tasks, as different from each other as you can, to test how well a language model follows \
instructions.

What a task must be like:
1. Its instruction begins with another verb than the others, and some instructions are questions.
2. The kinds differ: writing freely, explaining, classifying, rewriting, extracting, calculating, answering.
3. A program that reads and writes nothing but text can do it. It cannot see, hear, show, remind or look anything up.
4. It is in English, and its instruction is one sentence or two.
5. Its input is a concrete example with real content, no placeholder, and at most 100 words long.
6. Where the instruction says everything, the input is <noinput>.
7. Its output is a good answer of at most 100 words.

The {tasks} tasks:
""",
    "short": "List of {tasks} different tasks:\n",
}
"""Texts above the demonstrations; `{tasks}` stands for the length of the list."""
LARGEST_PREAMBLE = 2**20  # bytes; longer than any window


def load_preamble(name: str) -> str:
    """A preamble by its name, or from a file of text.

    Raises:
        FileError: the file is no text.
        OSError: neither a name nor a file that is there.
    """
    if name in PREAMBLES:
        return PREAMBLES[name]
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(f"--preamble {name} is neither a file nor one of {', '.join(PREAMBLES)}")
    text = read_text(path, limit=LARGEST_PREAMBLE)
    check_text(text, "the preamble", Place(path))
    return text


def render_prompt(preamble: str, demonstrations: Sequence[Record], tasks: int) -> str:
    """The prompt whose completion begins with the instruction of task `len(demonstrations) + 1`.

    >>> print(render_prompt("Tasks:", [Record("Name a  fruit:", "", "Apple")], 20))
    Tasks:
    <BLANKLINE>
    ###
    1. Instruction: Name a fruit
    1. Input:
    <noinput>
    1. Output:
    Apple
    ###
    2. Instruction:
    """
    lines = [preamble.replace("{tasks}", str(tasks)).rstrip("\n") + "\n"] if preamble else []
    for number, task in enumerate(demonstrations, start=1):
        instruction = re.sub(r"\s+", " ", task.instruction).strip().rstrip(":")
        lines += [
            SEPARATOR,
            f"{number}. Instruction: {instruction}",
            f"{number}. Input:\n{task.input or NO_INPUT}",
            f"{number}. Output:\n{task.output}",
        ]
    return "\n".join([*lines, SEPARATOR, f"{len(demonstrations) + 1}. Instruction:"])


def draw_prompt(
    seeds: Sequence[Record],
    request: int,
    *,
    preamble: str,
    shots: int,
    tasks: int,
    seed: int,
    fits: Callable[[str], bool] = lambda prompt: True,
) -> tuple[str, int]:
    """The prompt of a request (counted from 0), with random demonstrations; and how often it was drawn anew.

    Args:
        fits: whether a model's window has room for it; demonstrations are drawn until it has.

    Raises:
        ValueError: none of `MOST_REDRAWS` draws fits.
    """
    chance = random.Random(f"{seed} {request}")
    for redraws in range(MOST_REDRAWS):
        prompt = render_prompt(preamble, chance.sample(seeds, shots), tasks)
        if fits(prompt):
            return prompt, redraws
    raise ValueError(
        f"request {request + 1}: none of {MOST_REDRAWS:,} draws of {shots} demonstrations fits into the window; "
        "show fewer, or leave out the longest seed tasks"
    )
