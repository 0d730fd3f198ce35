"""Accuracies by group, and two runs on the same questions paired question by question.

Groups are the exam's steps, the questions whose fact was seen in training and those whose was not, and all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data.exams import Question
from evaluation.bootstrap import paired_bootstrap_interval
from evaluation.result import Result, accuracy_of
from evaluation.statistics import Accuracy, mcnemar_exact

ALL = "all"


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same questions.

    Attributes:
        before, after: the accuracies.
        gained: questions right only after; lost: right only before.
    """

    before: Accuracy
    after: Accuracy
    gained: int
    lost: int

    @property
    def change(self) -> float:
        """Accuracy after less accuracy before."""
        return self.after.value - self.before.value

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % of the change, by resampling the questions with both verdicts."""
        return paired_bootstrap_interval(self.gained, self.lost, self.after.n)

    @property
    def figures(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            "before": self.before.value,
            "after": self.after.value,
            "change": self.change,
            "interval": list(self.interval),
            "gained": self.gained,
            "lost": self.lost,
            "p_value": self.p_value,
        }

    @property
    def p_value(self) -> float:
        """Probability of a split at least as uneven if neither run were better."""
        return mcnemar_exact(self.gained, self.lost)


def accuracies(results: Sequence[Result]) -> dict[str, Accuracy]:
    """Accuracy of each group: steps in the exam's order if there are several, seen and unseen where known, all last."""
    return {name: accuracy_of(members) for name, members in _groups(results).items()}


def check_same_questions(results: Sequence[Result], questions: Sequence[Question | Result]) -> None:
    """Make sure that a comparison would be of like with like; a whole exam is scored before it could fail otherwise.

    Raises:
        ValueError: the ids differ, or the answer or options of a question do.
    """
    earlier = {result.id: (result.answer, list(result.letters)) for result in results}
    later = {q.id: (q.answer, list(q.options if isinstance(q, Question) else q.letters)) for q in questions}
    if different := sorted(earlier.keys() ^ later.keys()):
        raise ValueError(
            f"the runs are not about the same questions: {len(different)} occur in one only, such as {different[0]}; "
            "score both with the same --exam and --limit"
        )
    for name in later:
        if earlier[name] != later[name]:
            raise ValueError(
                f"the runs are not about the same questions: {name} had the answer {earlier[name][0]} of "
                f"{', '.join(earlier[name][1])}, now {later[name][0]} of {', '.join(later[name][1])}; score both with "
                "the same version of the exam"
            )


def compare(before: Sequence[Result], after: Sequence[Result]) -> dict[str, Comparison]:
    """Pair two runs question by question, by group.

    Raises:
        ValueError: they are not about the same questions.
    """
    check_same_questions(before, after)
    earlier = {result.id: result for result in before}
    comparisons = {}
    for name, members in _groups(after).items():
        verdicts = [(earlier[result.id].correct, result.correct) for result in members]
        comparisons[name] = Comparison(
            before=accuracy_of([earlier[result.id] for result in members]),
            after=accuracy_of(members),
            gained=verdicts.count((False, True)),
            lost=verdicts.count((True, False)),
        )
    return comparisons


def _groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    steps: dict[str, list[Result]] = {}
    for result in results:
        steps.setdefault(result.step or "no step", []).append(result)
    groups = steps if len(steps) > 1 else {}
    for name, seen in (("seen", True), ("unseen", False)):
        if members := [result for result in results if result.seen is seen]:
            groups[name] = members
    return groups | {ALL: list(results)}
