"""A journal: a file of JSON lines that grows while a program works, and from which it goes on after it was killed.

A row is on the disk when `append_rows` returns. What a killed process, or a disk that filled up, left of a line is cut
off by `cut_unfinished_line` before the next one is added, lest the two join; `rows.rows_of_lines(own=True)` reads the
others.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from files.writing import naming

BLOCK = 2**16
"""Bytes read at once, from the end."""


def append_rows(path: Path, *rows: Mapping[str, Any]) -> None:
    """Add a line for each row, and force them to the disk.

    Raises:
        OSError: the system refuses (a full disk, say); what was there before is kept.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with naming(path), path.open("ab") as file:
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def foreign_beginning(path: Path, own: bytes) -> bytes:
    """What a file begins with where a journal has `own`; nothing if it begins so, as far as it goes."""
    with path.open("rb") as file:
        start = file.read(len(own))
    return b"" if own.startswith(start) else start


def cut_unfinished_line(path: Path) -> None:
    """Drop what follows the last newline."""
    with naming(path), path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())
