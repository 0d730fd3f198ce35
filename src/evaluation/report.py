"""What is said about a scored exam: tables for the terminal, and a JSON file that a later run compares itself with.

    {"format": 1, "settings": {}, "versions": {}, "accuracy": {group: {}}, "notes": [], "questions": [{"id", ...}]}

Groups are the exam's steps, the questions whose fact was seen in training and those whose was not, and all.
"""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data.exams import Question
from data.fields import Place, check_text, field, quoted, text_field
from data.reading import read_json
from evaluation.scoring import Result
from evaluation.statistics import Accuracy, mcnemar_exact
from files import FileError, json_text, shown, write_whole

FORMAT = 1
ALL = "all"
PACKAGES = ("medalpaca-from-scratch", "torch", "numpy", "sentencepiece", "safetensors")
BAR_WIDTH = 24
REMEDY = "take a report written with --out"


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


@dataclass(frozen=True)
class Report:
    """A report read back.

    Attributes:
        results: of every question.
        settings: what the run was told, and "description", the model in one line.
    """

    results: list[Result]
    settings: dict[str, Any]


def accuracies(results: Sequence[Result]) -> dict[str, Accuracy]:
    """Accuracy of each group: steps in the exam's order if there are several, seen and unseen where known, all last."""
    return {name: _accuracy(members) for name, members in _groups(results).items()}


def check_same_questions(results: Sequence[Result], questions: Sequence[Question | Result]) -> None:
    """Make sure that a comparison would be of like with like; a whole exam is scored before it could fail otherwise.

    Raises:
        ValueError: the ids differ, or the answer or options of a question do.
    """
    earlier = {result.id: (result.answer, list(result.scores)) for result in results}
    later = {q.id: (q.answer, list(q.options if isinstance(q, Question) else q.scores)) for q in questions}
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


def accuracy_table(results: Sequence[Result], title: str = "") -> Table:
    """One row per group; bold where even the interval's lower end is above chance."""
    table = _table(title, "95 % Wilson intervals; chance: a blind guess; bold: above")
    for heading in ("n", "correct", "accuracy", "95 % interval", "chance"):
        table.add_column(heading, justify="right")
    for name, accuracy in accuracies(results).items():
        if name == ALL:
            table.add_section()
        interval = f"{accuracy.low:.1%} – {accuracy.high:.1%}"
        cells = (str(accuracy.n), str(accuracy.correct), f"{accuracy.value:.1%}", interval, f"{accuracy.chance:.1%}")
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
    """The question, and each option with its probability among the options; the answer is marked ✓."""
    table = Table.grid(padding=(0, 1))
    for justify in ("left", "left", "right", "right", "left"):
        table.add_column(justify=justify)
    for letter, probability in result.probabilities.items():
        mark = "✓" if letter == question.answer else ""
        colour = "green" if letter == question.answer else "red"
        style = colour if letter in (question.answer, result.predicted) else ""
        bar = Text("█" * round(BAR_WIDTH * probability) or "▏", style=style)
        option = Text(f"{letter}: {question.options[letter]}", style="bold" if letter == result.predicted else "")
        table.add_row(Text(mark, style="green"), option, f"{probability:.1%}", f"{result.scores[letter]:.3f}", bar)
    verdict = "right" if result.correct else f"wrong, the answer is {question.answer}"
    lines = [Text(f"{question.id}: {result.predicted} is {verdict}", style="bold")]
    if question.context:
        lines.append(Text(question.context, style="dim"))
    return Group(*lines, Text(question.text), table, Text(""))


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the accuracies should know: ties broken, prompts cut."""
    ties, cut = sum(result.tied for result in results), sum(result.truncated for result in results)
    said = []
    if ties:
        said.append(f"{ties} of {len(results)} questions ended in a tie; the first of the best options was taken")
    if cut:
        said.append(f"{cut} of {len(results)} prompts were cut on the left to fit the model's window")
    return said


# --- JSON ---


def write_report(path: Path, results: Sequence[Result], settings: Mapping[str, Any]) -> None:
    """Write the report; the file appears whole or not at all. `settings` must hold what JSON can."""
    derived = ("predicted", "correct", "margin", "tied")
    report = {
        "format": FORMAT,
        "settings": dict(settings),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "accuracy": {name: asdict(group) | {"value": group.value} for name, group in accuracies(results).items()},
        "notes": notes(results),
        "questions": [asdict(row) | {name: getattr(row, name) for name in derived} for row in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(path, json_text(report))
    except OSError as error:
        raise OSError(error.errno, f"the report was not written: {error.strerror}", str(path)) from error


def read_report(path: Path) -> Report:
    """Read what `write_report` wrote.

    Raises:
        FileError: no such file, or not a report of this format.
    """
    place = Place(path)
    try:
        return _parsed(read_json(path, remedy=REMEDY), place)
    except OSError as error:
        raise place.unsuitable(f"cannot be read ({error.strerror})", REMEDY) from error
    except FileError as error:
        raise type(error)(error.problem, file=path, place=error.place, remedy=error.remedy or REMEDY) from None


# --- Parts ---


def _parsed(content: Any, place: Place) -> Report:
    if field(content, "format", place, int) != FORMAT:
        raise place.unsuitable(f"its format is {shown(content['format'])}, expected {FORMAT}")
    settings = field(content, "settings", place, dict)
    text_field(settings, "description", place.at("settings"), default="")
    rows = field(content, "questions", place, list)
    results = [_read_result(row, place.at(f"question {number}")) for number, row in enumerate(rows, start=1)]
    if not results:
        raise place.unsuitable("holds no questions")
    if len({result.id for result in results}) < len(results):
        raise place.damaged("two of its questions have one id")
    return Report(results, settings)


def _read_result(row: Any, place: Place) -> Result:
    scores = field(row, "scores", place, dict)
    for letter in scores:
        check_text(letter, "a letter of the scores", place)
        if not math.isfinite(field(scores, letter, place.at("scores"), float)):
            raise place.unsuitable(f"the score of {quoted(letter)} is no finite number")
    answer = text_field(row, "answer", place)
    if len(scores) < 2 or answer not in scores:
        raise place.unsuitable(f"no score for its answer {shown(answer)}, or only that one")
    return Result(
        id=text_field(row, "id", place),
        step=text_field(row, "step", place),
        seen=field(row, "seen", place, bool, type(None)),
        answer=answer,
        scores=scores,
        truncated=field(row, "truncated", place, bool),
    )


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
    return Accuracy.of([result.correct for result in results], [len(result.scores) for result in results])


def _table(title: str, caption: str) -> Table:
    table = Table(title=escape(title) or None, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    table.add_column("questions")
    return table
