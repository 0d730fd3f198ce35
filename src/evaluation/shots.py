"""Few-shot prompts: answered questions before the one that is asked.

Drawn by seed, never the question itself nor one with the same text. From another exam the same ones for every question;
from the same exam each question gets its own, for whichever were fixed could not be asked.

Shots that leave no room for the question are dropped whole, the first ones first: the last stand next to the question.
"""

import random
from collections.abc import Callable, Sequence

from data import PromptTemplate
from data.exams import Question
from evaluation.prompts import Wording, with_shots


def draw_shots(
    questions: Sequence[Question], pool: Sequence[Question], count: int, seed: int, *, shared: bool
) -> list[list[Question]]:
    """`count` questions of the pool for each question.

    Args:
        shared: the same for all, as far as possible: from a pool without any of the questions.

    Raises:
        ValueError: the pool is too small.
    """
    if count == 0:
        return [[] for _ in questions]
    candidates: dict[str, Question] = {}
    for question in pool:
        candidates.setdefault(_key(question), question)
    if shared:
        asked = set(map(_key, questions))
        rest = [candidate for key, candidate in candidates.items() if key not in asked]
        _check(len(rest), count)
        return [random.Random(f"shots {seed}").sample(rest, count)] * len(questions)
    drawn = []
    for question in questions:
        own = _key(question)
        rest = [candidate for key, candidate in candidates.items() if key != own]
        _check(len(rest), count)
        drawn.append(random.Random(f"shots {seed} {question.id}").sample(rest, count))
    return drawn


def fit_shots(
    prompt: str,
    shots: list[Question],
    template: PromptTemplate,
    wording: Wording,
    fits: Callable[[str], bool],
) -> tuple[list[Question], str]:
    """The last of the shots that fit, and the prompt with them; `fits` says so of a prompt."""
    for cut in range(len(shots)):
        whole = with_shots(prompt, shots[cut:], template, wording)
        if fits(whole):
            return shots[cut:], whole
    return [], prompt


def shots_note(cut: int, shots: Sequence[list[Question]] | None) -> list[str]:
    """How many were dropped, as a sentence; nothing if none were."""
    total = sum(map(len, shots or ()))
    return [f"{cut} of {total} shots did not fit into the model's window and were left out"] if cut else []


def _key(question: Question) -> str:
    return " ".join(question.text.casefold().split())


def _check(available: int, count: int) -> None:
    if available < count:
        raise ValueError(
            f"--shots {count}: only {available} other questions to show; lower it, or take them from another exam with "
            "--shots-from"
        )
