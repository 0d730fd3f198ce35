"""Mixtures: several files, so many rows of each, by a seed; and the split into training and validation rows.

MedAlpaca was trained on such a mixture: Medical Meadow is a dozen and more sets, most used whole and the three largest
sampled (arXiv 2304.08247). Sampling is without replacement, and each file has its own random stream, so that adding a
file to a mixture leaves the choice from the others as it was.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data.records import Record, load_records
from files.fields import Place

Item = TypeVar("Item")


@dataclass(frozen=True)
class MixturePart:
    """A file and how many of its rows to draw; None takes them all."""

    path: str | Path
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"{self.path}: samples={self.samples}; draw at least one row, or leave the file out")


def load_mixture(parts: Sequence[MixturePart], *, seed: int) -> list[Record]:
    """Read every part, draw its samples without replacement, and join them in the order given.

    Drawn rows keep their file's order: shuffling is the epoch plan's work. The same parts and seed give the same rows.

    Raises:
        ValueError: no parts, or one file twice.
        FileError: what `load_records` refuses, or more samples than the file has rows.
        OSError: a file cannot be read.
    """
    if not parts:
        raise ValueError("the mixture is empty; name at least one data file")
    seen: set[Path] = set()
    records: list[Record] = []
    for part in parts:
        path = Path(part.path)
        if path.resolve() in seen:
            raise ValueError(f"{path} is in the mixture twice; give it once, with the number of samples wanted")
        seen.add(path.resolve())
        rows = load_records(path)
        if part.samples is not None:
            if part.samples > len(rows):
                raise Place(path).unsuitable(
                    f"{part.samples:,} samples asked of {len(rows):,} rows", "lower the number, or drop it"
                )
            chosen = random.Random(f"{seed}/{path.name}").sample(range(len(rows)), part.samples)
            rows = [rows[i] for i in sorted(chosen)]
        records += rows
    return records


def split_validation(
    items: Sequence[Item], *, rows: int | None = None, fraction: float | None = None, seed: int
) -> tuple[list[Item], list[Item]]:
    """Hold out `rows` items, or a `fraction` of them, drawn by `seed`; both halves keep their order.

    >>> split_validation("abcdef", rows=2, seed=0)
    (['a', 'c', 'd', 'f'], ['b', 'e'])

    Returns:
        (training items, validation items).

    Raises:
        ValueError: both or neither of rows and fraction, or a validation part that leaves nothing to train on.
    """
    if (rows is None) == (fraction is None):
        raise ValueError(f"give rows or fraction, one of them; got rows={rows}, fraction={fraction}")
    if fraction is not None:
        if not 0 <= fraction < 1:
            raise ValueError(f"fraction={fraction} of the rows for validation; expected 0 <= fraction < 1")
        rows = round(fraction * len(items))
    assert rows is not None
    if rows < 0 or rows >= max(len(items), 1):
        raise ValueError(f"{rows} validation rows of {len(items)} leave none to train on; lower the number")
    held_out = set(random.Random(f"{seed}/validation").sample(range(len(items)), rows))
    training = [item for i, item in enumerate(items) if i not in held_out]
    return training, [item for i, item in enumerate(items) if i in held_out]
