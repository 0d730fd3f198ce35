"""Preview: what the model will really see, on the terminal.

    example_text    one example, supervised tokens highlighted, begin- and end-of-text made visible
    histogram       lengths before cutting, with the window's edge
    print_preview   a few examples, the histogram, and what was cut or dropped

The text is decoded from the token ids, not taken from the record: a wrong template, mask or cut shows here.
"""

import re
from collections.abc import Sequence
from itertools import groupby, pairwise
from os.path import commonprefix
from typing import Protocol

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from data.supervise import Example, SupervisionReport

PROMPT_STYLE = "dim"
TARGET_STYLE = "bold green"
SPECIAL_STYLE = "magenta"
CUT_STYLE = "bold red"
BAR_WIDTH = 40
BUCKETS_IN_WINDOW = 8


class TokenDecoder(Protocol):
    """What the preview needs of a tokenizer."""

    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    def decode(self, token_ids: list[int]) -> str: ...


def example_text(example: Example, tokenizer: TokenDecoder) -> Text:
    """The example as the model sees it: dim prompt, bright targets, ids outside the text in their own colour.

    An example that does not end with end-of-text was cut; it ends with a mark that says so.
    """
    text = Text()
    start = 0
    for supervised, run in groupby(example.supervised):
        end = start + len(list(run))
        style = TARGET_STYLE if supervised else PROMPT_STYLE
        # Special ids stand only at the ends, and decode to nothing: show them by name.
        if start == 0 and example.token_ids[0] == tokenizer.bos_id:
            text.append("<s>", SPECIAL_STYLE)
        before, after = (tokenizer.decode(example.token_ids[:n]) for n in (start, end))
        # A run that ends inside a multi-byte character decodes to U+FFFD there: go on from what both agree on.
        shown = len(commonprefix([before, after]))  # noqa: RUF071, these are texts, not paths
        text.append(printable(after[shown:]), style)
        start = end
    if example.token_ids[-1] == tokenizer.eos_id:
        text.append("</s>", f"{SPECIAL_STYLE} bold" if example.supervised[-1] else SPECIAL_STYLE)
    else:
        text.append(" ✂ cut", CUT_STYLE)
    return text


def printable(text: str) -> str:
    """Control characters spelled out, except tab and line feed: a data file must not steer the terminal.

    >>> printable("red\\x1b[31m")
    'red\\\\x1b[31m'
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def histogram(lengths: Sequence[int], max_length: int) -> Table:
    """Counts of row lengths in eighths of the window, doubling beyond it; buckets beyond the window are red."""
    table = Table("tokens", "rows", "", title="row lengths before cutting", box=None, title_justify="left")
    buckets = length_buckets(lengths, max_length)
    most = max((count for _, _, count in buckets), default=0)
    for first, last, count in buckets:
        bar = "█" * round(BAR_WIDTH * count / most) or ("▏" if count else "")
        beyond = first > max_length
        table.add_row(f"{first:,}-{last:,}", f"{count:,}", Text(bar, CUT_STYLE if beyond else TARGET_STYLE))
    return table


def length_buckets(lengths: Sequence[int], max_length: int) -> list[tuple[int, int, int]]:
    """(shortest, longest, rows) per bucket: even steps inside the window, then powers of two of it.

    >>> length_buckets([3, 8, 9, 20], max_length=8)[-3:]
    [(8, 8, 1), (9, 16, 1), (17, 32, 1)]
    """
    step = -(-max_length // BUCKETS_IN_WINDOW)
    edges = [*range(0, max_length, step), max_length]
    while lengths and edges[-1] < max(lengths):
        edges.append(2 * edges[-1])
    return [(low + 1, high, sum(low < length <= high for length in lengths)) for low, high in pairwise(edges)]


def print_preview(
    examples: Sequence[Example],
    report: SupervisionReport,
    tokenizer: TokenDecoder,
    *,
    max_length: int,
    show: int = 3,
    console: Console | None = None,
) -> None:
    """Print the first `show` examples, the length histogram and the report."""
    console = console or Console()
    for number, example in enumerate(examples[:show], start=1):
        title = f"example {number}: {len(example)} tokens, {sum(example.supervised)} supervised"
        console.print(Panel(example_text(example, tokenizer), title=title, title_align="left"))
    legend = Text.assemble(
        ("prompt", PROMPT_STYLE), "  ", ("supervised", TARGET_STYLE), "  ", ("special", SPECIAL_STYLE)
    )
    summary = [Text(line) for line in report.lines()]
    console.print(Group(legend, Text(), histogram(report.full_lengths, max_length), Text(), *summary))
