"""Of an exam's page what `letters.py` and `bias.py` find: which letters are said, a taste for one, their order."""

from collections.abc import Sequence
from typing import Literal

from evaluation.bias import RotationBias
from evaluation.letters import NO_OPTION, NONE, confusion, letter_histogram
from evaluation.result import Result
from evaluation.statistics import Accuracy, shown_p
from pages import Bar, Bars, Heat, number, percent

MOST_LETTERS = 12


def letter_matrix(results: Sequence[Result]) -> Heat:
    """How often each letter was said where each was the answer; letters that are no option together."""
    counts = confusion(results)
    every = sorted({letter for row in results for letter in row.letters})
    names = every[:MOST_LETTERS]
    known = {*every, NONE}
    others = {answer: sum(n for letter, n in row.items() if letter not in known) for answer, row in counts.items()}
    table = [[counts.get(answer, {}).get(letter, 0) for letter in names] for answer in names]
    columns = list(names)
    for name, tally in (
        (NO_OPTION, others),
        (NONE, {answer: row.get(NONE, 0) for answer, row in counts.items()}),
    ):
        if any(tally.values()):
            columns.append(name)
            for answer, line in zip(names, table, strict=True):
                line.append(tally.get(answer, 0))
    left_out = len(every) - len(names)
    caption = f"And {left_out:,} letters more, which are not shown." if left_out else ""
    return Heat("What was said for what", "answer", "the model said", names, columns, table, caption)


def letter_bars(results: Sequence[Result]) -> Bars:
    """How often the model says each letter, beside how often the letter is the answer."""
    histogram, n = letter_histogram(results), len(results)
    rows = [
        Bar(letter, said / n, (number(said), number(histogram.answers[letter])), chance=histogram.answers[letter] / n)
        for letter, said in list(histogram.predicted.items())[:MOST_LETTERS]
    ]
    rows += [
        Bar(name, said / n, (number(said), ""), kind="faint")
        for name, said in ((NO_OPTION, histogram.no_option), (NONE, histogram.unanswered))
        if said
    ]
    tested = (
        ""
        if histogram.p_value is None
        else (
            "Wrong letters would be as uneven as these, in a model without a taste for any, with a probability of "
            f"p {shown_p(histogram.p_value)}."
        )
    )
    return Bars(
        "Does it prefer a letter?",
        rows,
        headings=("letter", "said", "in the key"),
        unit="%",
        legend=[("", "said by the model"), ("chance", "in the key")],
        caption=tested,
    )


def rotation_parts(bias: RotationBias) -> list[Bars]:
    """The same questions with their options in other orders: accuracy in each, and letters against fair shares."""
    orders = [accuracy_bar(f"moved on by {k}" if k else "as printed", found) for k, found in enumerate(bias.accuracies)]
    stable = (
        f"{bias.stable:,} of {bias.n:,} questions got the same text in every order ({percent(bias.stable / bias.n)})"
    )
    right = f"{bias.stable_right:,} the right one; over all orders {percent(bias.accuracy)} are right."
    total = sum(bias.fair.values()) or 1.0
    letters = [
        Bar(letter, bias.chosen[letter] / total, (number(bias.chosen[letter]), f"{fair:,.0f}"), chance=fair / total)
        for letter, fair in list(bias.fair.items())[:MOST_LETTERS]
    ]
    return [
        Bars(
            "Right answers in each order",
            orders,
            headings=("options", "n", "accuracy", "95 % interval"),
            unit="%",
            legend=[("", "right answers"), ("interval", "95 % Wilson interval"), ("chance", "a blind guess")],
            caption=f"{stable}, {right}",
        ),
        Bars(
            "Letters over all orders",
            letters,
            headings=("letter", "said", "fair"),
            unit="%",
            legend=[("", "said by the model"), ("chance", "by a model that reads the options")],
        ),
    ]


def accuracy_bar(
    name: str,
    found: Accuracy,
    more: Sequence[str] = (),
    *,
    kind: Literal["", "faint"] = "",
    strong: bool = False,
    goes_on: bool = False,
) -> Bar:
    """An accuracy with its interval and chance, as a row of `Bars`; `more`: further cells."""
    cells = (number(found.n), percent(found.value), f"{100 * found.low:.0f}–{100 * found.high:.0f}", *more)
    return Bar(name, found.value, cells, found.low, found.high, found.chance, kind, strong, goes_on)
