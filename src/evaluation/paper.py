"""Sitting an exam, whatever the protocol: longest questions first, so many at a time, with a bar, and resumable.

A protocol prepares a `Paper` (prompts made, nothing computed) and answers any of its questions; `sit` goes through
them. Longest first: what does not fit into memory fails at once, and neighbours need little padding. Which questions
are handed over together follows from that order and from what is answered already. Where a protocol gives their results
together, an exam that goes on after an interruption computes the others in the same company, and gets the same bits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from data.exams import Question
from evaluation.result import Result
from llama import Llama


class Paper(Protocol):
    """An exam as a protocol has prepared it.

    Attributes:
        model: what answers.
        questions: in the exam's order.
        lengths: tokens of each question's prompt.
        chunk: questions handed over together.
        notes: what the reader should know of the preparation.
    """

    questions: Sequence[Question]
    chunk: int
    notes: list[str]

    @property
    def model(self) -> nn.Module: ...

    @property
    def lengths(self) -> list[int]: ...

    def answer(self, rows: Sequence[int]) -> Iterator[list[Result]]:
        """Results of the questions of these numbers, in any order, as soon as they are there."""
        ...


def sit(
    paper: Paper,
    *,
    kept: Mapping[str, Result] | None = None,
    record: Callable[[Sequence[Result]], None] | None = None,
    progress: bool = False,
) -> list[Result]:
    """Answer every question.

    Args:
        kept: results of an earlier, interrupted sitting by question id; they are not asked again.
        record: called with results as soon as they are there.
        progress: show a bar on stderr.

    Returns:
        Results in the order of the questions.

    Raises:
        ValueError: no questions, or whatever the protocol refuses.
    """
    if not paper.questions:
        raise ValueError("there are no questions to score")
    results = dict(kept or {})
    lengths = paper.lengths
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    waiting = [i for i in order if paper.questions[i].id not in results]
    was_training = paper.model.training
    paper.model.eval()
    try:
        with _bar(progress) as bar:
            task = bar.add_task("questions", total=len(order), completed=len(order) - len(waiting))
            for start in range(0, len(waiting), paper.chunk):
                for done in paper.answer(waiting[start : start + paper.chunk]):
                    results |= {result.id: result for result in done}
                    bar.advance(task, len(done))
                    if record is not None:
                        record(done)
    finally:
        paper.model.train(was_training)
    return [results[question.id] for question in paper.questions]


def first_of_each_step(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """The first `limit` questions of each step, step by step, each in the exam's order."""
    if limit is None:
        return list(questions)
    steps: dict[str, list[Question]] = {}
    for question in questions:
        steps.setdefault(question.step, []).append(question)
    return [question for members in steps.values() for question in members[:limit]]


def check_vocabulary(model: nn.Module, largest: int) -> None:
    """A GPU would die of an id outside the embedding without a word about it."""
    if isinstance(model, Llama) and largest >= model.config.vocab_size:
        raise ValueError(
            f"the tokenizer makes id {largest}, the model embeds {model.config.vocab_size}; use the model's own "
            "tokenizer"
        )


def _bar(visible: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not visible)
