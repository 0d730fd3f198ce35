"""A journal beside the report: an exam that was interrupted goes on where it was.

JSON lines. The first holds a fingerprint, everything that shapes a result, by name; each further one results, of one
question or of a batch of them, forced to the disk before the next are asked. By likelihood the results of a sitting
that goes on are those of an undisturbed one to the bit, with the same batches on the same machine. A generated answer
draws from a generator of its own, but those that remain are decoded in other company, and can differ by rounding.

    {"journal": {"format": "1", "protocol": "medalpaca", "seed": "42", ...}}
    {"results": [{"id": "step1/1", ...}, ...]}

A last line without its end is what a killed process leaves, and is dropped. Any other line that cannot be read is
damage, and refused by its number. So is a journal with another fingerprint, unless it holds no results yet: one flag
mistyped should not cost the hours that are in it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.exams import Question
from evaluation.report import read_result
from evaluation.result import Result
from files import DamagedFileError, FileError, fields, shown, sync
from files.fields import Place, text_field
from files.lines import append_rows, cut_unfinished_line, foreign_beginning
from files.locks import locked
from files.rows import rows_of_lines
from files.writing import make_folder, naming

VERSION = "1"
BEGIN = b'{"journal": '
REMEDY = "delete it to begin anew, or name another --out"
LONGEST = 60
"""Characters of a setting that a message shows."""
OPAQUE = {
    "questions": "questions (--exam, --limit)",
    "shown": "shots",
    "weights": "weights of the model",
    "tokenizer": "tokens",
    "template": "words of the prompt template",
}
"""Settings whose values, digests and long texts, say nothing to people."""


@dataclass
class Journal:
    """The results so far.

    Attributes:
        kept: the results by question id, an interrupted run's included.
    """

    path: Path
    kept: dict[str, Result] = field(default_factory=dict)

    def story(self, n_questions: int) -> list[str]:
        """What the user should know of an earlier run's journal; nothing if there was none."""
        if self.kept:
            return [f"{self.path}: {len(self.kept)} of {n_questions} questions were answered before; going on"]
        return []

    def check(self, questions: Sequence[Question]) -> None:
        """Make sure that the results are about these questions, as the fingerprint says.

        Raises:
            DamagedFileError: one is not.
        """
        asked = {q.id: (q.step, q.seen, q.answer, tuple(q.options)) for q in questions}
        for result in self.kept.values():
            if asked.get(result.id) != (result.step, result.seen, result.answer, result.letters):
                raise DamagedFileError(
                    f"the result of question {shown(result.id)} is not about the exam's question of that number",
                    file=self.path,
                    remedy=REMEDY,
                )

    def record(self, results: Sequence[Result]) -> None:
        """Add a line, and force it to the disk.

        Raises:
            OSError: the system refuses (a full disk, say); what was recorded before is kept.
        """
        append_rows(self.path, {"results": [asdict(result) for result in results]})
        self.kept |= {result.id: result for result in results}

    def remove(self) -> None:
        """The report is written: the journal has served."""
        self.path.unlink(missing_ok=True)


def journal_path(report: Path, rotation: int = 0) -> Path:
    """Where the journal of a report lies; each order of the options has its own.

    >>> journal_path(Path("runs/before.json")).name
    'before.journal.jsonl'
    """
    return report.with_suffix(f".rotation-{rotation}.journal.jsonl" if rotation else ".journal.jsonl")


@contextmanager
def open_journal(path: Path, fingerprint: Mapping[str, str]) -> Iterator[Journal]:
    """Go on with the journal at `path`, or begin one.

    Args:
        fingerprint: what shapes a result, by name.

    Raises:
        FileError: it is no journal, a line is damaged, or the results are those of other settings.
        ValueError: another process is writing it.
        OSError: the system refuses.
    """
    make_folder(path.parent)
    fingerprint = {"format": VERSION} | dict(fingerprint)
    journal = Journal(path)
    with naming(path):
        path.touch()  # what is not there cannot be locked
    with _held(path):
        if foreign_beginning(path, BEGIN):
            raise Place(path).unsuitable("it is no journal of an exam", REMEDY)
        cut_unfinished_line(path)
        if not _read(journal, fingerprint):
            _begin(path, {"journal": fingerprint})
        yield journal


def _begin(path: Path, header: Mapping[str, Any]) -> None:
    """Empty the file and write its first line, in place: a new file would not be the one that is locked."""
    with naming(path):
        os.truncate(path, 0)
    append_rows(path, header)
    sync(path.parent)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    with locked(path) as free:
        if not free:
            raise ValueError(f"{path}: another process is writing this journal; wait for it, or give another --out")
        yield


def _read(journal: Journal, fingerprint: Mapping[str, str]) -> bool:
    """Fill in the results; whether there is a first line to go on from, with this fingerprint."""
    then: Mapping[str, str] | None = None
    try:
        for number, place, row in rows_of_lines(journal.path, own=True):
            if number == 1:
                then = _fingerprint(row, place)
                continue
            if then != fingerprint:
                raise Place(journal.path).unsuitable(_differences(then or {}, fingerprint))
            for each, result in enumerate(fields.field(row, "results", place, list), start=1):
                parsed = read_result(result, place.at(f"result {each}"))
                if parsed.id in journal.kept:
                    raise place.damaged(f"question {shown(parsed.id)} was answered before")
                journal.kept[parsed.id] = parsed
    except FileError as error:
        raise type(error)(error.problem, file=journal.path, place=error.place, remedy=REMEDY) from None
    return then == fingerprint


def _differences(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    different = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    others = [
        f"other {OPAQUE[name]}"
        if name in OPAQUE
        else f"{_cut(name)}: {_cut(then.get(name, '(unset)'))} then, {_cut(now.get(name, '(unset)'))} now"
        for name in different
    ]
    return f"it holds answers given under other settings; {'; '.join(others)}"


def _fingerprint(row: Any, place: Place) -> dict[str, str]:
    fingerprint = fields.field(row, "journal", place, dict)
    return {name: text_field(fingerprint, name, place.at("journal")) for name in fingerprint}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
