"""What the scripts at the root have in common: how they fail."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plain_errors(*more: type[Exception], out_of_memory: str = "use a device with more") -> Iterator[None]:
    """End the program with one line instead of a traceback where the user can do something about it.

    A ValueError names the value and the remedy itself, an OSError the file (one that is missing, a full disk), a
    MemoryError what would need less.
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
        sys.exit(f"error: {_named(error)}")
    except torch.OutOfMemoryError as error:
        sys.exit(f"error: out of memory; {out_of_memory} ({error})")
    except KeyboardInterrupt:
        sys.exit(130)


def _named(error: Exception) -> str:
    """The message; the system's with the file in front, as ours have it, and without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
