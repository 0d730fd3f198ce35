"""How much a hostile file may cost its reader, in memory and time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from files import FileError

SECONDS = 5.0
"""Of processor time: a busy machine is no fault of the file's."""
CONSTANT_BYTES = 48 * 2**20
"""What reading any file may take beside twice its size: interpreter, torch's first use of an operator, a tiny model."""


@pytest.fixture
def survives() -> Callable[[Callable[[], object], Path], bool]:
    """survives(read, file): whether `read` went through; a `FileError` or an OSError is False, all else an error.

    Peak memory above twice the file and a constant, or more than five seconds of work, fails the test.
    """

    def check(read: Callable[[], object], file: Path) -> bool:
        size = file.stat().st_size if file.is_file() else 0
        begin = time.process_time()
        went_through = True
        with peak_memory() as peak:
            try:
                read()
            except FileError as error:
                went_through = False
                message = str(error)
                message.encode()  # a lone surrogate would stop the program that prints it
                assert message.replace("\n  ", "").isprintable() and len(message) < 25_000
                assert error.problem and error.file
            except OSError as error:
                went_through = False
                assert error.filename is not None, f"an OSError that names no file: {error}"
        assert time.process_time() - begin < SECONDS
        assert peak() <= 2 * size + CONSTANT_BYTES, f"{peak() / 2**20:.0f} MiB for a file of {size} bytes"
        return went_through

    return check


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Gives a function that says by how many bytes the resident size rose at most within the block (Linux; else 0)."""
    try:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
    except OSError:
        yield lambda: 0
        return
    rose: list[int] = []
    yield lambda: rose[0]
    rose.append(_status("VmHWM") - before)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")
