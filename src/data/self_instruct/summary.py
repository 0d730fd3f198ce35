"""What came of a run, on the terminal: kept and dropped, lengths, similarities, first words, examples."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from data.preview import BAR_WIDTH, TARGET_STYLE, printable
from data.self_instruct.filters import REASONS
from data.self_instruct.journal import Round
from data.self_instruct.pool import Kept
from data.self_instruct.prompts import NO_INPUT

BINS = 10
N_WORDS = 10


def print_summary(rounds: Sequence[Round], *, show: int = 3, console: Console | None = None) -> None:
    """Print what the rounds gave, and the last `show` tasks."""
    console = console or Console()
    kept = [task for done in rounds for task in done.kept]
    dropped = sum((done.dropped for done in rounds), start=Counter[str]())
    for task in kept[len(kept) - min(show, len(kept)) :]:
        console.print(task_panel(task))
    console.print(counts_table(kept, dropped))
    for line in summary_lines(rounds, kept):
        console.print(Text(line))
    if kept:
        console.print(Text(), similarity_table([task.similarity for task in kept]))


def task_panel(task: Kept) -> Panel:
    """A task as people read it, with the instruction that it resembles most."""
    text = Text.assemble(
        (printable(task.instruction), "bold"),
        f"\n{printable(task.input or NO_INPUT)}\n",
        (printable(task.output), TARGET_STYLE),
    )
    nearest = next(iter(task.most_similar_instructions), "")
    title = f"F {task.similarity:.2f} with: {printable(' '.join(nearest.split()))[:BAR_WIDTH]}"
    return Panel(text, title=Text(title), title_align="left")


def counts_table(kept: Sequence[Kept], dropped: Counter[str]) -> Table:
    """How many pieces of completions were kept, and for which reasons the others were not."""
    total = len(kept) + dropped.total()
    table = Table("pieces", "", "", box=None)
    for name, count, meaning in (
        ("kept", len(kept), ""),
        *((name, dropped[name], meaning) for name, meaning in REASONS.items() if dropped[name]),
    ):
        table.add_row(name, f"{count:,}", f"{count / max(total, 1):.1%}  {meaning}")
    return table


def summary_lines(rounds: Sequence[Round], kept: Sequence[Kept]) -> list[str]:
    """Requests, lengths in words and first words, a sentence each."""
    requests, redraws = (sum(getattr(done, name) for done in rounds) for name in ("requests", "redraws"))
    lines = [f"{requests:,} requests, {len(kept) / max(requests, 1):.2f} tasks kept of each"]
    lines += [f"{redraws:,} prompts were drawn anew to fit into the window"] if redraws else []
    if kept:
        for name in ("instruction", "output"):
            lengths = [len(getattr(task, name).split()) for task in kept]
            middle = statistics.median(lengths)
            lines.append(f"words of the {name}: {min(lengths)} to {max(lengths)}, median {middle:.0f}")
        inputs = sum(bool(task.input) for task in kept)
        lines.append(f"{inputs:,} of {len(kept):,} have an input")
        words = first_words(kept)
        shown = ", ".join(f"{word} {count}" for word, count in words.most_common(N_WORDS))
        lines.append(f"{len(words):,} different first words: {shown}")
        average = statistics.fmean(task.avg_similarity_score for task in kept)
        lines.append(f"mean F with the whole pool {average:.3f}")
    return lines


def first_words(kept: Sequence[Kept]) -> Counter[str]:
    """How often an instruction begins with each word: mostly verbs, which the paper counts with a parser."""
    return Counter((re.findall(r"\w+", task.instruction.lower()) or ["(none)"])[0] for task in kept)


def similarity_table(similarities: Sequence[float]) -> Table:
    """How similar kept tasks are to what was there before, in tenths of F."""
    counts = Counter(min(int(similarity * BINS), BINS - 1) for similarity in similarities)
    most = max(counts.values(), default=1)
    table = Table("F", "tasks", "", title="the most similar instruction before", box=None, title_justify="left")
    for low in range(BINS):
        bar = "█" * round(BAR_WIDTH * counts[low] / most) or ("▏" if counts[low] else "")
        table.add_row(f"{low / BINS:.1f}-{(low + 1) / BINS:.1f}", f"{counts[low]:,}", Text(bar, TARGET_STYLE))
    return table
