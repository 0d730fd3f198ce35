"""Progress of a long read or write: a bar with GB, GB/s and time left on a terminal, and one closing line anywhere.

All of it goes to stderr: stdout belongs to what the program computes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def transfer_progress(
    doing: str, done: str, total_bytes: int, *, enabled: bool = True
) -> Iterator[Callable[[int], None]]:
    """Follow a transfer of so many bytes. The block calls what it is given with the size of each piece it has moved.

    Args:
        doing: what the bar says, such as "loading 7B".
        done: what the closing line says, such as "loaded 7B"; size, time and rate follow.
        total_bytes: of the whole transfer.
        enabled: False keeps silent.
    """
    if not enabled:
        yield lambda n_bytes: None
        return
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    start = time.perf_counter()
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(doing, total=total_bytes)
        yield lambda n_bytes: bar.advance(task, n_bytes)
    seconds = time.perf_counter() - start
    rate = decimal(round(total_bytes / max(seconds, 1e-9)))
    console.print(f"{done}: {decimal(total_bytes)} in {seconds:.1f} s ({rate}/s)", soft_wrap=True, markup=False)
