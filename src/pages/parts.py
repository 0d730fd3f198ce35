"""What a section holds besides charts: figures at a glance, facts, tables, a matrix, words, a worked example."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

LEVELS = 8
"""Shades of a matrix."""
MOST_ROWS = 60
"""Rows of a table; what is longer is cut, and says so."""


@dataclass(frozen=True)
class Tile:
    """A figure that is read first: its value, what it is, and a word on it."""

    value: str
    label: str
    hint: str = ""


@dataclass(frozen=True)
class Tiles:
    """Some figures beside each other."""

    tiles: Sequence[Tile]
    template: ClassVar[str] = "tiles.html"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    title: str
    rows: Sequence[tuple[str, object]]
    template: ClassVar[str] = "facts.html"


@dataclass(frozen=True)
class Table:
    """Rows under headings; all columns but the first hold numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    template: ClassVar[str] = "table.html"

    @property
    def left_out(self) -> int:
        """Rows that are not shown."""
        return max(0, len(self.rows) - MOST_ROWS)


@dataclass(frozen=True)
class Heat:
    """A matrix of counts, each shaded by its size.

    Attributes:
        rows_are, columns_are: what the labels name.
        counts: by row.
    """

    title: str
    rows_are: str
    columns_are: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: Sequence[Sequence[int]]
    caption: str = ""
    template: ClassVar[str] = "heat.html"

    def level(self, count: int) -> int:
        """The shade of a count: 0 for none, LEVELS for the largest of the matrix.

        >>> [Heat("", "", "", "a", "abc", [[0, 1, 80]]).level(n) for n in (0, 1, 40, 80)]
        [0, 1, 4, 8]
        """
        most = max((n for row in self.counts for n in row), default=0)
        return 0 if count <= 0 else max(1, LEVELS * count // most)


@dataclass(frozen=True)
class Prose:
    """Paragraphs. `kind`: note is set apart, warning in the colour of alarm, code keeps its spaces."""

    paragraphs: Sequence[str]
    kind: Literal["", "note", "warning", "code"] = ""
    template: ClassVar[str] = "prose.html"


@dataclass(frozen=True)
class Choice:
    """One of the answers to choose from.

    Attributes:
        share: its probability, 0 to 1; None where there is none.
        right: whether it is the answer; chosen: whether it was given.
    """

    letter: str
    text: str
    share: float | None = None
    right: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class Example:
    """A question with its answers.

    Attributes:
        heading: which, and how it went; verdict colours it.
        background: what is to be read first; folded.
        said: (who, what) of texts that were generated.
    """

    heading: str
    verdict: Literal["good", "bad", ""]
    question: str = ""
    background: str = ""
    choices: Sequence[Choice] = ()
    said: Sequence[tuple[str, str]] = ()
    template: ClassVar[str] = "example.html"
