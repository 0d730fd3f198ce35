"""Tables of `bias.py` for a terminal of 80 columns."""

from collections.abc import Mapping

from rich import box
from rich.markup import escape
from rich.table import Table

from evaluation.bias import NO_OPTION, NONE, LetterHistogram, RotationBias, shown_p


def rotation_table(bias: RotationBias) -> Table:
    """Two parts: accuracy in each order, and letters chosen against fair."""
    caption = (
        f"the same text in every order: {bias.stable} of {bias.n} ({bias.stable / bias.n:.1%}), "
        f"right in every order: {bias.stable_right} ({bias.stable_right / bias.n:.1%})"
    )
    if bias.unanswered:
        caption += f"; no answer: {bias.unanswered} times"
    caption += f"; over all orders {bias.accuracy:.1%} right"
    table = _table("options moved on by", caption)
    for heading in ("n", "accuracy", "95 % interval", "letter", "chosen", "fair"):
        table.add_column(heading, justify="right")
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


def letters_table(histogram: LetterHistogram) -> Table:
    """Each letter's count among the answers, among the predictions."""
    total = max(1, sum(histogram.answers.values()))
    caption = "no wrong answer had a choice of letters"
    if histogram.p_value is not None:
        caption = f"wrong letters so uneven without a taste for letters: p {shown_p(histogram.p_value)}"
    table = _table("letter", caption)
    for heading in ("answers", "share", "predicted", "share"):
        table.add_column(heading, justify="right")
    for letter, n in histogram.answers.items():
        found = histogram.predicted[letter]
        table.add_row(escape(letter), str(n), f"{n / total:.1%}", str(found), f"{found / total:.1%}")
    for name, n in ((NO_OPTION, histogram.no_option), (NONE, histogram.unanswered)):
        if n:
            table.add_row(name, "", "", str(n), f"{n / total:.1%}")
    return table


def confusion_table(counts: Mapping[str, Mapping[str, int]]) -> Table:
    """A row per right letter, a column per predicted one; right ones bold. Fits 80 columns up to 12 letters."""
    predicted = sorted({letter for row in counts.values() for letter in row} - {NONE} | set(counts))
    table = _table("answer", "rows: the right letter, columns: the predicted one; bold: right")
    columns = [*predicted, *([NONE] if any(NONE in row for row in counts.values()) else [])]
    for letter in columns:
        table.add_column(escape(letter), justify="right")
    for answer, row in counts.items():
        cells = [
            f"[bold]{row.get(letter, 0)}[/]" if letter == answer else str(row.get(letter, 0)) for letter in columns
        ]
        table.add_row(escape(answer), *cells)
    return table


def _table(first: str, caption: str) -> Table:
    table = Table(caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption_justify = "left"
    table.add_column(first)
    return table
