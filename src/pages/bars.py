"""A table one of whose columns is drawn: bars from zero, with the interval around each and what chance would give."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from pages.scale import Scale, has_place


@dataclass(frozen=True)
class Bar:
    """One row.

    Attributes:
        label: what it is about.
        value: where the bar ends; None draws none.
        cells: what the other columns say.
        low, high: the interval.
        chance: where the row's own chance line stands.
        kind: good and bad have colours of their own; faint is for what a row is compared with.
        strong: of the whole.
        goes_on: about the same as the row above, of which no line parts it.
    """

    label: str
    value: float | None
    cells: Sequence[str] = ()
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    kind: Literal["", "good", "bad", "faint"] = ""
    strong: bool = False
    goes_on: bool = False

    @property
    def marks(self) -> list[float]:
        """All that must fit onto the axis."""
        return [mark for mark in (self.value, self.low, self.high, self.chance) if mark is not None]


@dataclass(frozen=True)
class Bars:
    """The table.

    Attributes:
        headings: of the label and of the cells, which stand right of the bar.
        unit: behind each tick of the axis; "%" draws shares in percent.
        caption: a sentence below.
        legend: (kind of bar, what it is), where there are several.
    """

    title: str
    rows: Sequence[Bar]
    headings: Sequence[str] = ("",)
    unit: str = ""
    caption: str = ""
    legend: Sequence[tuple[str, str]] = ()
    template: ClassVar[str] = "bars.html"

    @cached_property
    def axis(self) -> Scale:
        """From zero to a tick at or above the largest mark."""
        return Scale.over([0.0, *(self._factor * mark for row in self.rows for mark in row.marks)])

    def at(self, value: float | None) -> str:
        """Where a value lies, in percent of the column's width."""
        place = None if value is None else self.axis.place(value * self._factor)
        return f"{100 * min(1.0, max(0.0, place or 0.0)):.4g}%"

    def drawable(self, value: float | None) -> bool:
        """Whether there is a bar to draw."""
        return value is not None and has_place(value)

    @property
    def _factor(self) -> int:
        return 100 if self.unit == "%" else 1
