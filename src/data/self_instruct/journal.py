"""The journal: a file of JSON lines that grows by one line a round, and from which a run goes on.

    {"format": 1, "settings": {...}}                                        what the tasks depend on
    {"round": 1, "requests": 8, "redraws": 0, "dropped": {...}, "kept": [...]}
    ...

The first line is written with the first round. A line is on the disk before the next round begins. What a killed
process left of a line is cut off when the journal is opened again, and that round is done again. One process at a time
may hold it open.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.self_instruct.filters import REASONS
from data.self_instruct.pool import Kept
from files import require_regular_file, shown, sync
from files.fields import Place, field, quoted
from files.lines import append_rows, cut_unfinished_line
from files.locks import locked
from files.rows import rows_of_lines
from files.writing import naming

FORMAT = 1
ANEW = "remove it to begin anew, or name another --out"
BEGIN = b'{"format": '


@dataclass(frozen=True)
class Round:
    """What came of some requests that were completed together.

    Attributes:
        number: from 1.
        requests: prompts completed.
        redraws: prompts drawn anew because they were too long.
        dropped: pieces of completions that were not kept, by reason.
    """

    number: int
    requests: int
    redraws: int
    dropped: Counter[str]
    kept: list[Kept]

    def to_row(self) -> dict[str, Any]:
        """As an object of JSON."""
        counts = {"round": self.number, "requests": self.requests, "redraws": self.redraws}
        return counts | {"dropped": dict(self.dropped), "kept": [kept.to_row() for kept in self.kept]}

    @classmethod
    def from_row(cls, row: Any, place: Place) -> "Round":
        """From a parsed object of JSON; FileError if it is none."""
        counts = [_count(row, name, place) for name in ("round", "requests", "redraws")]
        given = field(row, "dropped", place, dict)
        for name in given.keys() - REASONS.keys():
            raise place.unsuitable(f"{quoted(name)} is no reason to drop a task", ANEW)
        dropped = Counter({name: _count(given, name, place.at("dropped")) for name in given})
        rows = field(row, "kept", place, list)
        kept = [Kept.from_row(task, place.at(f"kept {n}")) for n, task in enumerate(rows, start=1)]
        return cls(counts[0], counts[1], counts[2], dropped, kept)


class Journal:
    """A journal that is open. Made by `open_journal`.

    Attributes:
        rounds: those in the file, in their order.
    """

    def __init__(self, path: Path, rounds: list[Round], settings: Mapping[str, Any]) -> None:
        self.path, self.rounds, self._settings = path, rounds, dict(settings)

    def append(self, done: Round) -> None:
        """Add a round; it is on the disk when this returns."""
        header = [] if self.rounds else [{"format": FORMAT, "settings": self._settings}]
        append_rows(self.path, *header, done.to_row())
        self.rounds.append(done)


@contextmanager
def open_journal(path: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """Hold a journal open to go on with; one that is not there, or without a whole round, is begun.

    Args:
        settings: what the tasks depend on, as JSON values.

    Raises:
        FileError: it was begun with other settings, another process holds it, or it is damaged.
        OSError: the system refuses.
    """
    if path.exists():
        require_regular_file(path)
    with naming(path):
        path.touch()  # what is not there cannot be locked
    with locked(path) as ours:
        if not ours:
            raise Place(path).unsuitable("another process is writing it", "wait for its end, or name another --out")
        rounds = read_journal(path, settings)
        if not rounds:
            with naming(path):
                os.truncate(path, 0)  # a first line of other settings, and no round that would be lost with it
        cut_unfinished_line(path)
        sync(path.parent)
        yield Journal(path, rounds, settings)


def read_journal(path: Path, settings: Mapping[str, Any] | None = None) -> list[Round]:
    """The rounds of a journal, without a last line that was cut short.

    Args:
        settings: those it must have been begun with, if it holds a round; None for any.

    Raises:
        FileError: it was begun with other settings; or it is no journal, or damaged.
    """
    with path.open("rb") as file:
        if not BEGIN.startswith(start := file.read(len(BEGIN))):
            raise Place(path).unsuitable(f"it begins with {shown(start)}, as no journal does", ANEW)
    rounds: list[Round] = []
    begun: dict[str, Any] | None = None
    for _, place, row in rows_of_lines(path, own=True):
        if begun is None:
            begun = _settings(row, place)
            continue
        if not rounds and settings is not None:
            _check_same(begun, settings, Place(path))
        rounds.append(Round.from_row(row, place))
        if rounds[-1].number != len(rounds):
            raise place.damaged(f"round {rounds[-1].number} stands where round {len(rounds)} should", ANEW)
    return rounds


def _settings(header: Any, place: Place) -> dict[str, Any]:
    if (found := field(header, "format", place, int, remedy=ANEW)) != FORMAT:
        raise place.unsuitable(f"format {found}, and this program writes format {FORMAT}", ANEW)
    settings: dict[str, Any] = field(header, "settings", place, dict, remedy=ANEW)
    return settings


def _check_same(begun: Mapping[str, Any], settings: Mapping[str, Any], place: Place) -> None:
    for name in sorted(begun.keys() | settings.keys()):
        then, now = begun.get(name), settings.get(name)
        if then != now:
            raise place.unsuitable(
                f"it was begun with {name.replace('_', ' ')} {shown(then)}, now it is {shown(now)}",
                f"say the same to go on; or {ANEW}",
            )


def _count(row: Any, name: str, place: Place) -> int:
    count: int = field(row, name, place, int)
    if count < 0:
        raise place.damaged(f"{quoted(name)} is {count}, a count cannot be negative", ANEW)
    return count
