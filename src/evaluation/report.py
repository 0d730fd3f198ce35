"""What is said about an exam at the terminal: accuracies by group, two runs compared, worked examples.

Groups are the exam's steps, the questions whose fact was seen in training and those whose was not, and all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data.exams import Question
from evaluation.result import Result
from evaluation.statistics import Accuracy, mcnemar_exact

ALL = "all"
BAR_WIDTH = 24
LONGEST_TEXT = 300
"""Characters of a generated text that are shown."""


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
    def p_value(self) -> float:
        """Probability of a split at least as uneven if neither run were better."""
        return mcnemar_exact(self.gained, self.lost)


def accuracies(results: Sequence[Result]) -> dict[str, Accuracy]:
    """Accuracy of each group: steps in the exam's order if there are several, seen and unseen where known, all last."""
    return {name: _accuracy(members) for name, members in _groups(results).items()}


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
            before=_accuracy([earlier[result.id] for result in members]),
            after=_accuracy(members),
            gained=verdicts.count((False, True)),
            lost=verdicts.count((True, False)),
        )
    return comparisons


# --- Terminal ---


def accuracy_table(results: Sequence[Result], title: str = "", published: Mapping[str, float] | None = None) -> Table:
    """One row per group; bold where even the interval's lower end is above chance. Fits into 80 columns.

    Args:
        published: accuracy by step that somebody reports, to stand beside the measured one.
    """
    table = _table(title, "95 % Wilson intervals; chance: a blind guess; bold: above")
    for heading in ("n", "correct", "accuracy", "95 % interval", "chance", *(["published"] if published else [])):
        table.add_column(heading, justify="right")
    if published and len(steps := {result.step for result in results}) == 1:
        published = {**published, ALL: published[step]} if (step := steps.pop()) in published else published
    for name, accuracy in accuracies(results).items():
        if name == ALL:
            table.add_section()
        interval = f"{accuracy.low:.1%} – {accuracy.high:.1%}"
        cells = [str(accuracy.n), str(accuracy.correct), f"{accuracy.value:.1%}", interval, f"{accuracy.chance:.1%}"]
        if published:
            cells.append(f"{published[name]:.1%}" if name in published else "")
        style = "bold" if accuracy.low > accuracy.chance else ""
        table.add_row(escape(name), *cells, style=style)
    return table


def comparison_table(comparisons: Mapping[str, Comparison], title: str = "") -> Table:
    """One row per group; bold where a gain would be rare by luck (p < 0.05). Fits into 80 columns."""
    caption = "(95 % Wilson interval); p: exact McNemar test, paired; bold: better, p < 0.05"
    table = _table(title, caption)
    for heading in ("n", "before", "after", "chance", "gained", "lost", "p"):
        table.add_column(heading, justify="right")
    for name, row in comparisons.items():
        if name == ALL:
            table.add_section()
        spans = [f"{a.value:.1%} ({100 * a.low:.0f}–{100 * a.high:.0f})" for a in (row.before, row.after)]
        p = "<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}"
        cells = (*spans, f"{row.after.chance:.0%}", f"+{row.gained}", f"−{row.lost}", p)
        style = "bold" if row.gained > row.lost and row.p_value < 0.05 else ""
        table.add_row(escape(name), str(row.after.n), *cells, style=style)
    return table


def worked_example(question: Question, result: Result) -> RenderableType:
    """The question and its options, the answer marked ✓; each with its probability among them, or below them what was
    said."""
    table = Table.grid(padding=(0, 1))
    for justify in ("left", "left", "right", "right", "left"):
        table.add_column(justify=justify)
    for letter, text in question.options.items():
        mark = "✓" if letter == question.answer else ""
        colour = "green" if letter == question.answer else "red"
        chosen = letter == result.predicted
        cells: list[RenderableType] = []
        if result.scores:
            probability = result.probabilities[letter]
            bar = "█" * round(BAR_WIDTH * probability) or "▏"
            style = colour if letter in (question.answer, result.predicted) else ""
            cells = [f"{probability:.1%}", f"{result.scores[letter]:.3f}", Text(bar, style=style)]
        option = Text(f"{letter}: {text}", style="bold" if chosen else "")
        table.add_row(Text(mark, style="green"), option, *cells)
    verdict = "right" if result.correct else f"wrong, the answer is {question.answer}"
    lines = [Text(f"{question.id}: {result.predicted or 'no answer'} is {verdict}", style="bold")]
    if question.context:
        lines.append(Text(question.context, style="dim"))
    lines.append(Text(question.text))
    said = [_said(number, text) for number, text in enumerate(result.texts, start=1)]
    return Group(*lines, table, *said, Text(""))


def evenly(pairs: Sequence[tuple[Question, Result]], count: int) -> list[tuple[Question, Result]]:
    """`count` of the pairs, spread over all of them."""
    count = min(count, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


# --- Parts ---


def _groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    steps: dict[str, list[Result]] = {}
    for result in results:
        steps.setdefault(result.step or "no step", []).append(result)
    groups = steps if len(steps) > 1 else {}
    for name, seen in (("seen", True), ("unseen", False)):
        if members := [result for result in results if result.seen is seen]:
            groups[name] = members
    return groups | {ALL: list(results)}


def _accuracy(results: Sequence[Result]) -> Accuracy:
    return Accuracy.of([result.correct for result in results], [len(result.letters) for result in results])


def _table(title: str, caption: str) -> Table:
    table = Table(title=escape(title) or None, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    table.add_column("questions")
    return table


def _said(number: int, text: str) -> Text:
    cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"
    return Text(f"said, try {number}: {cut!r}", style="dim")
