"""What the scripts at the root have in common: how they fail."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plain_errors(*more: type[Exception], out_of_memory: str = "use a device with more") -> Iterator[None]:
    """End the program with one line instead of a traceback where the user can do something about it.

    A ValueError names the value and the remedy itself, an OSError the file (a full disk, a folder without permission),
    a MemoryError what would need less.
    Ctrl-C ends without a word and with a shell's status for it, 130. Whatever else is a fault of ours, and keeps its
    traceback.

    Args:
        more: kinds of error that say all there is to say, too.
        out_of_memory: what to change when the accelerator's memory does not suffice.
    """
    plain: tuple[type[Exception], ...] = (ValueError, OSError, MemoryError, *more)
    try:
        yield
    except plain as error:
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: out of memory; {out_of_memory} ({error})")
    except KeyboardInterrupt:
        sys.exit(130)
