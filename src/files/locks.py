"""A lock on a draft or a directory, which the system releases however its process ends.

So what a killed process left can be told from what a living one is writing (`files.writing`): no number of a process is
remembered, which another may have by now. Advisory locks (flock); they hold between the processes of one machine, and
on network file systems between machines where those support it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or directory while the block runs; False where somebody else has it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked_draft(path: Path) -> Iterator[None]:
    """Make a file and hold its lock; whoever looked at it in between, taking it for a dead process's, is waited for."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDONLY, 0o666)
        try:
            with suppress(OSError):  # a file system without locks grants every one
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # it was not removed meanwhile
                yield
                return
        finally:
            os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a living process holds it; so does one that renames it at this moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """False where somebody else has the lock; a file system without locks grants every one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
