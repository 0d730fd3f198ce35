"""What can be wrong with a file: one family of errors, each with the file, the place in it, and what to do.

    FileError                   a ValueError
    ├── DamagedFileError        not what its format says: cut, flipped, unparsable
    ├── UnsafeFileError         refused for what it would do: run code, unpack without end, leave its directory
    └── UnsuitableFileError     sound, but not for this use: other shapes, missing keys, the wrong kind of content

A file that is not there, or may not be read, stays the system's OSError, which names it too.

What a message quotes comes from the file, and the file may be hostile: control characters (which would steer the
terminal, or begin a line that looks like ours) and lone surrogates (which no terminal can print) are written as
escapes, and a long message is cut.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from reprlib import Repr
from typing import Any

LONGEST = 20_000
"""Characters of a message: room for a line on each tensor of a 7B."""

_short = Repr()
_short.maxlevel, _short.maxdict, _short.maxstring, _short.maxlong, _short.maxother = 3, 20, 120, 60, 120


class FileError(ValueError):
    """A file that cannot be used.

    Args:
        problem: what is wrong.
        file: where.
        place: where in it: a line, a row, a tensor's name, a key; "" for the whole file.
        remedy: what to do about it, as an imperative.
        details: more of what is wrong, each on a line of its own.

    >>> print(DamagedFileError("ends within a string", file="rows.json", place="line 7", remedy="download it again"))
    rows.json, line 7: ends within a string; download it again
    """

    def __init__(
        self, problem: str, *, file: str | Path, place: str = "", remedy: str = "", details: Sequence[str] = ()
    ) -> None:
        self.file, self.place, self.problem, self.remedy, self.details = Path(file), place, problem, remedy, details
        where = f"{file}, {place}" if place else f"{file}"
        lines = [printable(f"{where}: {problem}"), *(f"\n  {printable(detail)}" for detail in details)]
        super().__init__("".join(lines)[:LONGEST] + (f"; {printable(remedy)}" if remedy else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes, where an exception is otherwise made anew from its message alone."""
        parts: dict[str, Any] = {"file": self.file, "place": self.place, "remedy": self.remedy, "details": self.details}
        return partial(type(self), **parts), (self.problem,)


class DamagedFileError(FileError):
    """It is not what its format says."""


class UnsafeFileError(FileError):
    """Using it could do harm, so it is not used."""


class UnsuitableFileError(FileError):
    """It is sound, but cannot serve here."""


def printable(text: str) -> str:
    r"""The text on one line, not endless, and without anything that a terminal would obey or refuse.

    >>> print(printable("a\x1b[2J\n\ud800é"))
    a\x1b[2J\n\ud800é
    """
    cut = f"{text[:LONGEST]} … ({len(text) - LONGEST:,} characters more)" if len(text) > LONGEST else text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def shown(value: object) -> str:
    """A value from a file as it is quoted: its `repr`, cut where it is long or deep.

    >>> shown(-3), shown([[[["deep"]]]] + list(range(9)))
    ('-3', '[[[[...]]], 0, 1, 2, 3, 4, ...]')
    """
    return _short.repr(value)
