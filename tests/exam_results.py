"""Results of an exam that nobody sat: right or wrong as asked."""

import random

from data.exams import Question
from evaluation import Result

FOUR = Question("4", "Which?", dict(zip("ABCD", ("w", "x", "y", "z"), strict=True)), "B")
FIVE = Question("5", "Which?", dict(zip("ABCDE", ("v", "w", "x", "y", "z"), strict=True)), "A")
ROW = {
    "id": "1",
    "step": "",
    "seen": None,
    "answer": "A",
    "letters": ["A", "B"],
    "predicted": "A",
    "scores": {"A": -1.0, "B": -2.0},
    "texts": [],
    "accident": False,
    "truncated": False,
}
"""A result as a report holds it."""


def result(name: str, right: bool, step: str = "", seen: bool | None = None, **changes: object) -> Result:
    """A question with four options whose answer is B."""
    scores = {"A": -3.0, "B": -1.0 if right else -4.0, "C": -2.0, "D": -5.5}
    fields = {"letters": tuple("ABCD"), "predicted": "B" if right else "C", "scores": scores}
    return Result(**({"id": name, "step": step, "seen": seen, "answer": "B"} | fields | changes))  # type: ignore[arg-type]


def exam(verdicts: str, step: str = "") -> list[Result]:
    """One question per letter: r is right, w is wrong."""
    return [result(f"{step}/{i}", verdict == "r", step) for i, verdict in enumerate(verdicts)]


def said(question: Question, letter: str | None) -> Result:
    return Result.said(question, letter, ())


def questions(n: int, letters: str = "ABCD", seed: int = 0) -> list[Question]:
    draw = random.Random(seed)
    options = {letter: f"text {letter}" for letter in letters}
    return [Question(str(i), "Which?", options, draw.choice(letters)) for i in range(n)]
