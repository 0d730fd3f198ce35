"""Seeds and kept tasks together: whether one more differs enough from all of them, and what it resembles most."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.records import Record
from data.self_instruct.rouge import RougeIndex, most_similar
from files import shown
from files.fields import Place, field, quoted, text_field

THRESHOLD = 0.7
"""F above which two instructions count as the same; the paper's and Stanford's."""
N_SIMILAR = 10


@dataclass(frozen=True)
class Kept:
    """A task that was kept, in the form of Stanford's file.

    Attributes:
        most_similar_instructions: of the pool that it was compared with, the `N_SIMILAR` with the largest F, and F.
        avg_similarity_score: the mean of F over that whole pool.
    """

    instruction: str
    input: str
    output: str
    most_similar_instructions: dict[str, float]
    avg_similarity_score: float

    @property
    def similarity(self) -> float:
        """F with the most similar instruction."""
        return max(self.most_similar_instructions.values(), default=0.0)

    def to_row(self) -> dict[str, Any]:
        """As an object of JSON."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Any, place: Place) -> "Kept":
        """From a parsed object of JSON; FileError if it is none of these."""
        similar = field(row, "most_similar_instructions", place, dict)
        inside = place.at("most_similar_instructions")
        return cls(
            instruction=text_field(row, "instruction", place),
            input=text_field(row, "input", place),
            output=text_field(row, "output", place),
            most_similar_instructions={text: _f(similar, text, inside) for text in similar},
            avg_similarity_score=_f(row, "avg_similarity_score", place),
        )


class Pool:
    """Instructions to differ from.

    Args:
        seeds: the first of them.
        threshold: the largest F that still counts as different.
    """

    def __init__(self, seeds: Sequence[Record], threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self._texts: list[str] = []
        self._index = RougeIndex()
        for seed in seeds:
            self._add(seed.instruction)

    def __len__(self) -> int:
        return len(self._texts)

    def take(self, task: Record) -> Kept | None:
        """Take the task in if it differs from all that are there; else None."""
        scores = self._index.scores(task.instruction)
        nearest = most_similar(scores, N_SIMILAR)
        if nearest and scores[nearest[0]] > self.threshold:
            return None
        similar = {self._texts[i]: float(scores[i]) for i in reversed(nearest)}  # of equal texts the larger F
        similar = dict(reversed(similar.items()))
        average = float(np.mean(scores)) if len(scores) else 0.0
        self._add(task.instruction)
        return Kept(task.instruction, task.input, task.output, similar, average)

    def recall(self, kept: Kept) -> None:
        """Take in again what was taken in before."""
        self._add(kept.instruction)

    def _add(self, instruction: str) -> None:
        self._texts.append(instruction)
        self._index.add(instruction)


def _f(row: Any, key: str, place: Place) -> float:
    """row[key] as a value that F can have."""
    value = field(row, key, place, float, int)
    if not 0 <= value <= 1:  # NaN is none either
        raise place.damaged(f"{quoted(key)} is {shown(value)}, outside 0 to 1", "is it this program's file?")
    return float(value)
