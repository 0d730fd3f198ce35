"""A scored exam as a web page, beside its JSON report: accuracies, changes, letters, how sure, some questions.

What stands in the JSON report is said here to people: the same intervals, the same test, the same notes. A page is made
of what it is given and of nothing else: the same results make the same bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from data.exams import Question
from evaluation.bias import RotationBias
from evaluation.comparison import ALL, Comparison, accuracies
from evaluation.page_examples import worked_examples
from evaluation.page_letters import accuracy_bar, letter_bars, letter_matrix, rotation_parts
from evaluation.result import Result
from evaluation.statistics import Accuracy, shown_p, shown_points, wilson_interval
from files import versions
from pages import (
    Bar,
    Bars,
    Facts,
    Page,
    Prose,
    Section,
    Table,
    Tile,
    Tiles,
    clean,
    number,
    percent,
    setting,
)

MOST_GROUPS = 24
SURENESS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LONGEST_TITLE = 120
TITLE = "Exam report: "
DISCLAIMER = "Nothing here is medical advice: an exam measures what a model makes of an exam."


def exam_page(
    results: Sequence[Result],
    *,
    settings: Mapping[str, Any],
    questions: Sequence[Question],
    notes: Sequence[str] = (),
    comparison: Mapping[str, Comparison] | None = None,
    rotations: RotationBias | None = None,
    published: Mapping[str, float] | None = None,
    title: str = "",
    date: str = "",
) -> Page:
    """The page of one exam, from the figures that matter most to those that make it possible to have them again.

    Args:
        results: at least one.
        settings: as in the JSON report; "description" is the model, "exam" what was asked.
        questions: those of the results, in any order, for the examples.
        notes: what a reader of the accuracies should know.
        comparison: with an earlier report, by group.
        rotations: what was found when the options stood in other orders.
        published: accuracy by group that somebody reports, to stand beside the measured one.
        title: what the exam is called; by default the end of its path.
        date: printed at the end, if given.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("no results: a page needs at least one question")
    groups = accuracies(results)
    sections = [
        Section("Accuracy", accuracy_parts(groups, comparison, published or {})),
        Section("Letters", [letter_matrix(results), letter_bars(results)], layout="grid"),
    ]
    if rotations:
        sections.append(Section("Order of the options", rotation_parts(rotations), layout="grid"))
    if sure := sureness(results):
        sections.append(Section("How sure", [sure]))
    if examples := list(worked_examples(results, questions)):
        sections.append(Section("Some of the questions", examples, layout="grid"))
    rows = [
        (key, setting(value))
        for key, value in settings.items()
        if value not in (None, "", [], ()) and key != "description"
    ]
    sections.append(
        Section("How it was done", [Facts("Settings", rows), Facts("Versions", list(versions().items()))], "flow")
    )
    return Page(
        title=f"{TITLE}{clean(title or _short(settings.get('exam')), LONGEST_TITLE)}",
        subtitle=str(settings.get("description", "")),
        head=[
            Tiles(list(tiles(results, groups[ALL], (comparison or {}).get(ALL)))),
            *([Prose(list(notes), "note")] if notes else []),
        ],
        sections=sections,
        footer=[DISCLAIMER],
        date=date,
    )


def tiles(results: Sequence[Result], whole: Accuracy, change: Comparison | None) -> Iterator[Tile]:
    """The figures that are read first."""
    yield Tile(percent(whole.value), "accuracy", f"{span(whole)}, 95 % interval")
    verdict = "above chance" if whole.low > whole.chance else "below chance" if whole.high < whole.chance else ""
    yield Tile(percent(whole.chance), "chance", f"the model is {verdict}" if verdict else "within the interval")
    yield Tile(number(whole.n), "questions", f"{whole.correct:,} answered right")
    if change:
        detail = f"{changed_span(change)}, 95 % interval; p {shown_p(change.p_value)}"
        yield Tile(shown_points(change.change), "points since before", detail)
    if unanswered := sum(row.predicted is None for row in results):
        yield Tile(number(unanswered), "without an answer", "they count as wrong")
    if accidents := sum(row.accident for row in results):
        yield Tile(number(accidents), "answers by accident", "read off a text that gives none")


def accuracy_parts(
    groups: Mapping[str, Accuracy], comparison: Mapping[str, Comparison] | None, published: Mapping[str, float]
) -> list[Bars | Table]:
    """Bars by group, each with its earlier self if there is one; then what was gained and lost."""
    names, column = shown_groups(groups), ["published"] if published else []
    rows = []
    for name in names:
        if comparison and name in comparison:
            rows.append(accuracy_bar(f"{name}, before", comparison[name].before, [""] * len(column), kind="faint"))
        more = [percent(published[name]) if name in published else "" for _ in column]
        rows.append(accuracy_bar(name, groups[name], more, strong=name == ALL, goes_on=bool(comparison)))
    left_out = len(groups) - len(names)
    legend = [("", "this model"), ("interval", "95 % Wilson interval"), ("chance", "a blind guess")]
    drawn = Bars(
        "Right answers",
        rows,
        headings=("questions", "n", "accuracy", "95 % interval", *column),
        unit="%",
        legend=[("faint", "before"), *legend] if comparison else legend,
        caption=f"And {left_out:,} groups more, in the JSON report." if left_out else "",
    )
    if not comparison:
        return [drawn]
    table = Table(
        "Before and after, question by question",
        ("questions", "points (95 %)", "gained, lost", "p"),  # as wide as a phone
        [
            (
                name,
                f"{shown_points(c.change, 0)} ({changed_span(c, 0).replace('+', '')})",
                f"+{c.gained:,} −{c.lost:,}",
                shown_p(c.p_value).removeprefix("= ").replace(" ", ""),
            )
            for name in names
            if (c := comparison.get(name))
        ],
        caption="In brackets the 95 % interval of the points, by resampling the questions with both verdicts. gained: "
        "right only after; lost: right only before. p: McNemar's exact test, two-sided; a p of less than 0.05 would be "
        "rare if neither model were better. Where few changed, it says more than the interval.",
    )
    return [drawn, table]


def sureness(results: Sequence[Result]) -> Bars | None:
    """Right answers by the share of the option chosen, see `Result.probabilities`; None where there are no scores."""
    sure = [(max(row.probabilities.values()), row.correct) for row in results if row.probabilities]
    rows = []
    for low, high in pairwise(SURENESS):
        held = [(share, right) for share, right in sure if low <= share < high or share == high == 1]
        if held:
            n_right = sum(right for _, right in held)
            bounds = wilson_interval(n_right, len(held))
            mean = sum(share for share, _ in held) / len(held)
            cells = (number(len(held)), percent(n_right / len(held)), percent(mean))
            label = f"{100 * low:.0f} to {100 * high:.0f} %"
            rows.append(Bar(label, n_right / len(held), cells, *bounds, chance=mean))
    if not rows:
        return None
    return Bars(
        "Is it right when it is sure?",
        rows,
        headings=("its share", "n", "right", "mean share"),
        unit="%",
        legend=[("", "right answers"), ("interval", "95 % Wilson interval"), ("chance", "mean share")],
        caption="Questions by the share, among the options, of the one that was chosen, a softmax of scores. With "
        "the methods text and letter it is the model's own probability, and a model that knows how much it knows is "
        "right as often as that says: the bar ends at the line.",
    )


def shown_groups(groups: Mapping[str, Accuracy]) -> list[str]:
    """The groups that fit onto a page, all of them together last."""
    return [*[name for name in groups if name != ALL][: MOST_GROUPS - 1], ALL]


def span(accuracy: Accuracy) -> str:
    """The interval in words."""
    return f"{100 * accuracy.low:.1f} to {percent(accuracy.high)}"


def changed_span(change: Comparison, digits: int = 1) -> str:
    """The interval of a change in words."""
    return " to ".join(shown_points(end, digits) for end in change.interval)


def _short(exam: object) -> str:
    """The end of a path, by which an exam is known.

    >>> _short("/data/medqa/test.jsonl")
    'medqa/test.jsonl'
    """
    return "/".join(Path(str(exam)).parts[-2:]) if exam else "multiple choice"
