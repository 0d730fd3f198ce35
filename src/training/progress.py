"""What a run shows while it works: a bar with loss, learning rate, tokens/s, memory and the time left.

In a terminal one line is redrawn; into a pipe or a file go plain lines, one per twentieth of the run.
"""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB (10⁹ bytes): allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in units of 1,024 bytes on Linux, in bytes on macOS
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


class TrainingProgress:
    """The bar; `update` moves it. Use through `training_progress`."""

    def __init__(self, bar: Progress, total_steps: int, done: int) -> None:
        self.bar = bar
        self.total_steps = total_steps
        self.task = bar.add_task("training", total=total_steps, completed=done, figures="")

    def update(self, step: int, *, loss: float, lr: float, tokens_per_second: float, memory_gb: float) -> None:
        """Show the figures of the step just taken."""
        figures = f"loss {loss:.3f} lr {lr:.1e} {tokens_per_second:,.0f} tok/s {memory_gb:.1f} GB"
        self.bar.update(self.task, completed=step, figures=figures)
        every = max(1, self.total_steps // 20)
        console = self.bar.console
        if console.quiet or console.is_terminal:
            return
        if step % every == 0 or step == self.total_steps:
            seconds_left = self.bar.tasks[self.task].time_remaining
            left = "" if seconds_left is None else f"  {seconds_left / 60:.1f} min left"
            print(f"step {step}/{self.total_steps}  {figures}{left}", flush=True)

    @contextmanager
    def validating(self, n_batches: int) -> Iterator[Callable[[], None]]:
        """A second bar while the validation set is read; call what it yields after each batch."""
        task = self.bar.add_task("validating", total=n_batches, figures="validating")
        yield lambda: self.bar.advance(task)
        self.bar.remove_task(task)

    def say(self, text: str) -> None:
        """Print above the bar."""
        self.bar.console.print(text, highlight=False, markup=False)


@contextmanager
def training_progress(total_steps: int, *, done: int = 0, quiet: bool = False) -> Iterator[TrainingProgress]:
    """Show progress over `total_steps` optimizer steps, of which `done` were taken by an earlier run.

    Args:
        quiet: show nothing: another process of the team does.
    """
    console = Console(quiet=quiet)
    # All of it fits into 80 columns; rich would cut what does not.
    columns = (
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield TrainingProgress(bar, total_steps, done)
