"""What is said about an exam at the terminal: accuracies, two runs compared, orders, presets, worked examples."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data.exams import Question
from evaluation.bias import RotationBias
from evaluation.comparison import ALL, Comparison, accuracies
from evaluation.presets import PRESETS, STEPS
from evaluation.result import Result
from evaluation.statistics import shown_p, shown_points

BAR_WIDTH = 24
LONGEST_TEXT = 300
"""Characters of a generated text that are shown."""


def accuracy_table(results: Sequence[Result], title: str = "", published: Mapping[str, float] | None = None) -> Table:
    """One row per group; bold where even the interval's lower end is above chance. Fits into 80 columns.

    Args:
        published: accuracy by group that somebody reports, to stand beside the measured one.
    """
    caption = "95 % Wilson intervals; chance: a blind guess; bold: above"
    headings = ("n", "correct", "accuracy", "95 % interval", "chance", *(["published"] if published else []))
    table = _table(("questions",), headings, caption, title)
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
    whole = comparisons[ALL]
    caption = (
        f"all: {shown_points(whole.change)} points, 95 % interval {' to '.join(map(shown_points, whole.interval))} "
        "(resampled, paired)\n"
        "(95 % Wilson interval); p: exact McNemar test, paired, safer for few changes; bold: better, p < 0.05"
    )
    table = _table(("questions",), ("n", "before", "after", "chance", "gained", "lost", "p"), caption, title)
    for name, row in comparisons.items():
        if name == ALL:
            table.add_section()
        spans = [f"{a.value:.1%} ({100 * a.low:.0f}–{100 * a.high:.0f})" for a in (row.before, row.after)]
        p = shown_p(row.p_value).removeprefix("= ").replace(" ", "")  # 80 columns are full
        cells = (*spans, f"{row.after.chance:.0%}", f"+{row.gained}", f"−{row.lost}", p)
        style = "bold" if row.gained > row.lost and row.p_value < 0.05 else ""
        table.add_row(escape(name), str(row.after.n), *cells, style=style)
    return table


def rotation_table(bias: RotationBias) -> Table:
    """Two parts: accuracy in each order, and letters chosen against fair. Fits into 80 columns."""
    caption = (
        f"the same text in every order: {bias.stable} of {bias.n} ({bias.stable / bias.n:.1%}), "
        f"right in every order: {bias.stable_right} ({bias.stable_right / bias.n:.1%})"
    )
    if bias.unanswered:
        caption += f"; no answer: {bias.unanswered} times"
    caption += f"; over all orders {bias.accuracy:.1%} right"
    headings = ("n", "accuracy", "95 % interval", "letter", "chosen", "fair")
    table = _table(("options moved on by",), headings, caption)
    letters = list(bias.fair)
    for row in range(max(len(bias.accuracies), len(letters))):
        left, right = [""] * 4, [""] * 3
        if row < len(bias.accuracies):
            found = bias.accuracies[row]
            left = [str(row), str(found.n), f"{found.value:.1%}", f"{found.low:.1%} – {found.high:.1%}"]
        if row < len(letters):
            letter = letters[row]
            right = [escape(letter), str(bias.chosen[letter]), f"{bias.fair[letter]:.0f}"]
        table.add_row(*left, *right)
    return table


def presets_table() -> Table:
    """All rows of `PRESETS`. Fits into 80 columns."""
    caption = "published: % right in step 1, 2, 3; * needs --adapter"
    table = _table(("preset", "template", "base"), ("published",), caption)
    for preset in PRESETS.values():
        name = preset.name + ("*" if preset.needs_adapter else "")
        base = preset.base + (", int8" if preset.int8 else "")
        table.add_row(name, preset.template, base, " ".join(f"{100 * preset.published[step]:.1f}" for step in STEPS))
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


def _table(left: Sequence[str], right: Sequence[str], caption: str, title: str = "") -> Table:
    """An empty table with these headings, the columns `right` aligned to the right."""
    table = Table(title=escape(title) or None, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _said(number: int, text: str) -> Text:
    cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"
    return Text(f"said, try {number}: {cut!r}", style="dim")
