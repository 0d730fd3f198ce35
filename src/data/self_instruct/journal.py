"""The journal: a file of JSON lines that grows by one line a round, and from which a run goes on.

    {"format": 2, "settings": {...}, "model": {...}}                        what the tasks depend on
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
from files.lines import append_rows, cut_unfinished_line, foreign_beginning
from files.locks import locked
from files.rows import rows_of_lines
from files.writing import naming

FORMAT = 2
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

    def __init__(self, path: Path, rounds: list[Round], settings: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        self.path, self.rounds, self._settings, self._model = path, rounds, dict(settings), dict(model)

    @property
    def kept(self) -> list[Kept]:
        """The tasks of all rounds."""
        return [task for done in self.rounds for task in done.kept]

    def set_model(self, identity: Mapping[str, str]) -> None:
        """Say which model completes the prompts of the rounds to come; the first round writes it down.

        Raises:
            FileError: the rounds so far are another model's.
        """
        if self.rounds:
            _check_same(self._model, identity, Place(self.path))
        self._model = dict(identity)

    def append(self, done: Round) -> None:
        """Add a round; it is on the disk when this returns."""
        header = [] if self.rounds else [{"format": FORMAT, "settings": self._settings, "model": self._model}]
        append_rows(self.path, *header, done.to_row())
        self.rounds.append(done)


@contextmanager
def open_journal(path: Path, settings: Mapping[str, Any]) -> Iterator[Journal]:
    """Hold a journal open to go on with; one that is not there, or without a whole round, is begun.

    Args:
        settings: what the tasks depend on and is known without the model, as JSON values.

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
        model, rounds = _read(path, settings)
        if not rounds:
            model = {}
            with naming(path):
                os.truncate(path, 0)  # a first line of other settings, and no round that would be lost with it
        cut_unfinished_line(path)
        sync(path.parent)
        yield Journal(path, rounds, settings, model)


def read_journal(path: Path, settings: Mapping[str, Any] | None = None) -> list[Round]:
    """The rounds of a journal, without a last line that was cut short.

    Args:
        settings: those it must have been begun with, if it holds a round; None for any.

    Raises:
        FileError: it was begun with other settings; or it is no journal, or damaged.
    """
    return _read(path, settings)[1]


def _read(path: Path, settings: Mapping[str, Any] | None) -> tuple[dict[str, Any], list[Round]]:
    """The model that a journal was begun with, and its rounds."""
    if start := foreign_beginning(path, BEGIN):
        raise Place(path).unsuitable(f"it begins with {shown(start)}, as no journal does", ANEW)
    rounds: list[Round] = []
    begun: dict[str, Any] = {}
    for _, place, row in rows_of_lines(path, own=True):
        if not begun:
            begun = _header(row, place)
            continue
        if not rounds and settings is not None:
            _check_same(begun["settings"], settings, Place(path))
        rounds.append(Round.from_row(row, place))
        if rounds[-1].number != len(rounds):
            raise place.damaged(f"round {rounds[-1].number} stands where round {len(rounds)} should", ANEW)
    return begun.get("model", {}), rounds


def _header(header: Any, place: Place) -> dict[str, Any]:
    """The first line, checked."""
    if (found := field(header, "format", place, int, remedy=ANEW)) != FORMAT:
        raise place.unsuitable(f"format {found}, and this program writes format {FORMAT}", ANEW)
    return {name: field(header, name, place, dict, remedy=ANEW) for name in ("settings", "model")}


def _check_same(begun: Mapping[str, Any], given: Mapping[str, Any], place: Place) -> None:
    for name in sorted(begun.keys() | given.keys()):
        then, now = begun.get(name), given.get(name)
        if then != now:
            raise place.unsuitable(
                f"it was begun with {name.replace('_', ' ')} {shown(then)}, now it is {shown(now)}",
                f"take the same to go on; or {ANEW}",
            )


def _count(row: Any, name: str, place: Place) -> int:
    count: int = field(row, name, place, int)
    if count < 0:
        raise place.damaged(f"{quoted(name)} is {count}, a count cannot be negative", ANEW)
    return count
