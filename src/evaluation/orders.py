"""Sitting an exam once, or once in every cyclic order of its options; each order with a journal of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from data.exams import Question
from evaluation.alike import digest
from evaluation.bias import RotationBias, rotated
from evaluation.journal import Journal, journal_path, open_journal
from evaluation.notes import notes
from evaluation.paper import Paper, sit
from evaluation.result import Result

Prepare = Callable[[Sequence[Question], Sequence[list[Question]]], Paper]
"""(questions, for each the shots before it) -> what `sit` takes."""


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        results: of the exam as it is printed.
        notes: what a reader of them should know.
        bias: what the order changed; None if there was one order only.
        asked: how many questions were asked now, over all orders; the others' results an earlier run had left.
        in_all: how many there are, over all orders.
    """

    results: list[Result]
    notes: list[str]
    bias: RotationBias | None
    asked: int
    in_all: int
    _journals: list[Journal] = field(default_factory=list)

    def finish(self) -> None:
        """All is written elsewhere: remove the journals."""
        for journal in self._journals:
            journal.remove()


@contextmanager
def sit_in_orders(
    prepare: Prepare,
    questions: Sequence[Question],
    shots: Sequence[list[Question]],
    *,
    every_order: bool = False,
    report: Path | None = None,
    shaped_by: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Iterator[Outcome]:
    """Ask everything; the journals are held until the block ends, and stay unless it calls `finish`.

    Args:
        every_order: ask a question of n options n times, with its options moved on by 0 to n − 1 places.
        report: the file that journals lie beside; without one there are none.
        shaped_by: what shapes a result, the questions apart.
        say: told of what an earlier run left.

    Raises:
        FileError, ValueError, OSError: as `open_journal` and `sit`.
    """
    n_orders = max(len(question.options) for question in questions) if every_order else 1
    orders: list[list[Result]] = []
    said: list[str] = []
    journals: list[Journal] = []
    asked = 0
    with ExitStack() as held:
        turns = [_turned(questions, shots, k) for k in range(n_orders)]
        if report is not None:  # all of them first: one that is damaged or in use should not show after hours
            for k, (turned, shown) in enumerate(turns):
                fingerprint = dict(shaped_by or {}) | {"questions": digest(turned), "shown": digest(shown)}
                journals.append(held.enter_context(open_journal(journal_path(report, k), fingerprint)))
                journals[k].check(turned)
                for line in journals[k].story(len(turned)):
                    say(line)
        in_all = sum(len(turned) for turned, _ in turns)
        for k, (turned, shown) in enumerate(turns):
            paper = prepare(turned, shown)
            kept = journals[k].kept if journals else {}
            asked += len(turned) - len(kept)
            try:
                results = sit(paper, kept=kept, record=journals[k].record if journals else None, progress=progress)
            except KeyboardInterrupt:
                if journals:
                    n_kept = sum(len(journal.kept) for journal in journals)
                    say(f"interrupted: {n_kept} of {in_all} questions are answered; the same command goes on")
                raise
            if k == 0:
                said = [*notes(results, turned), *paper.notes]
            # A question with fewer options is not asked in the later orders, and nobody looks at its result there.
            known = {result.id: result for result in (*(orders[0] if orders else ()), *results)}
            orders.append([known[question.id] for question in questions])
        yield Outcome(orders[0], said, RotationBias.of(orders) if every_order else None, asked, in_all, journals)


def _turned(
    questions: Sequence[Question], shots: Sequence[list[Question]], k: int
) -> tuple[list[Question], list[list[Question]]]:
    """The questions that have more than k options, these moved on by k places, and the shots before each."""
    rows = [row for row in zip(questions, shots, strict=True) if len(row[0].options) > k]
    return [rotated(question, k) if k else question for question, _ in rows], [shown for _, shown in rows]
