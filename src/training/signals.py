"""Stopping well: SIGTERM and SIGINT (Ctrl-C) let the step in hand end, save a checkpoint, and only then the program."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody wants the run to stop.

    Attributes:
        signal: the number of the first signal that asked for it; 0 while nobody has.
        saving: set while a checkpoint is written, when not even a second Ctrl-C may interrupt.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.saving = False

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM."""
        return signal.Signals(self.signal).name

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """The handler. A second Ctrl-C ends a step that takes too long; whatever else comes second changes nothing."""
        if not self.signal:
            self.signal = number
            what = "ending the save" if self.saving else "ending this step, then saving a checkpoint"
            print(f"{self.name}: {what} ...", file=sys.stderr, flush=True)
        elif number == signal.SIGINT and self.signal == signal.SIGINT and not self.saving:
            raise KeyboardInterrupt


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take SIGTERM and SIGINT for requests to stop, until the block ends; a thread other than the main gets none."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in STOPPING}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
