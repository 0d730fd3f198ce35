"""Curves over the steps of a run.

A page may be drawn from a million lines of a log, and has a thousand columns of pixels. In each column the least and
the largest value are kept, in the order in which they came, and all else is left out: no spike is lost, as a mean would
lose it, and none is made wider. A value that has no place on the axis (NaN, above all) is a gap, however narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from markupsafe import Markup

from pages.scale import Scale, has_place
from pages.text import number

COLUMNS = 1000
"""Units of the drawing in each direction: at least one per pixel, on a page as wide as ours gets."""
STRIPS = 50
"""Places along the axis that tell their values when pointed at."""

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: for the legend.
        points: (x, y), x rising; y None or NaN where there is no value.
        style: line; faint (thin, behind what matters); dots (a line with a mark on each point, for few of them).
        colour: which of the page's colours, from 0.
    """

    name: str
    points: Points
    style: Literal["line", "faint", "dots"] = "line"
    colour: int = 0


@dataclass(frozen=True)
class Lines:
    """A chart of curves that share both axes.

    Attributes:
        unit: what the values are, for the head of the chart.
        x_label: what the first coordinate counts.
        log: logarithmic values; those that are not positive become gaps.
        level: a horizontal line, with a name: a limit, a prediction.
        caption: a sentence below.
    """

    title: str
    series: Sequence[Series]
    unit: str = ""
    x_label: str = "step"
    log: bool = False
    level: tuple[float, str] | None = None
    caption: str = ""
    template: ClassVar[str] = "lines.html"

    @cached_property
    def x(self) -> Scale:
        """From the first to the last place with a value."""
        return Scale.over((x for row in self.series for x, _ in row.points), exact=True)

    @cached_property
    def y(self) -> Scale:
        """Around all values."""
        values = [y for row in self.series for _, y in row.points if y is not None]
        return Scale.over(values + ([self.level[0]] if self.level else []), log=self.log)

    @property
    def summary(self) -> str:
        """The chart in words, for those who hear it."""
        said = [f"{self.title}{f', {self.unit}' if self.unit else ''}, by {self.x_label}"]
        for row in self.series:
            if found := [(x, y) for x, y in row.points if y is not None and has_place(y, log=self.log)]:
                (first, start), (last, end) = found[0], found[-1]
                span = f"{number(start)} at {number(first, 9)}, {number(end)} at {number(last, 9)}"
                least, most = min(y for _, y in found), max(y for _, y in found)
                said.append(f"{row.name}: {span}; between {number(least)} and {number(most)}")
            else:
                said.append(f"{row.name}: no values")
        return ". ".join(said)

    @property
    def missing(self) -> int:
        """How many values could not be drawn."""
        ys = [y for row in self.series for _, y in row.points if y is not None]
        return sum(not has_place(y, log=self.log) for y in ys)

    def path(self, row: Series) -> Markup:
        """The curve, in whole units from the top left corner."""
        return Markup(path(row.points, self.x, self.y))

    def marks(self, row: Series) -> Markup:
        """A dot on each point: a line of no length, whose round ends stay round however the drawing is stretched."""
        runs = thinned(row.points, self.x, self.y)
        return Markup("".join(f"M{x} {y}h0" for run in runs for x, y in run))

    def strips(self) -> list[tuple[float, float, str]]:
        """Place and width of each strip (shares of the axis), and its values in words; empty ones are left out."""
        found: list[dict[str, list[float]]] = [{} for _ in range(STRIPS)]
        at: list[list[float]] = [[] for _ in range(STRIPS)]
        for row in self.series:
            for x, y in row.points:
                place = self.x.place(x)
                if place is not None and y is not None:
                    strip = min(STRIPS - 1, int(place * STRIPS))
                    at[strip].append(x)
                    found[strip].setdefault(row.name, []).append(y)
        return [
            (i / STRIPS, 1 / STRIPS, f"{self.x_label} {_span(at[i], 9)}: " + _values(found[i]))
            for i in range(STRIPS)
            if at[i]
        ]


def thinned(points: Points, x: Scale, y: Scale) -> list[list[tuple[int, int]]]:
    """The unbroken runs of a curve, in whole units: of each column at most its least and its largest value.

    A gap within a column ends the run behind that column, so that it is seen though it is narrower than a pixel.
    """
    runs: list[list[tuple[int, int]]] = [[]]
    column, broken = -1, False
    held: list[int] = []  # the heights in this column, in order

    def close() -> None:
        if held:
            extremes = sorted({held.index(min(held)), held.index(max(held))})
            runs[-1].extend((column, held[i]) for i in extremes)
        if broken and runs[-1]:
            runs.append([])

    for at, value in points:
        across, up = x.place(at), y.place(value)
        if across is None:
            continue
        here = round(across * COLUMNS)
        if here != column:
            close()
            column, held, broken = here, [], False
        if up is None:
            broken = True
        else:
            held.append(round((1 - up) * COLUMNS))
    close()
    return [run for run in runs if run]


def path(points: Points, x: Scale, y: Scale) -> str:
    """An SVG path along a curve. A lone point between gaps is a dot.

    >>> path([(0, 0.0), (1, 1.0), (2, None), (3, 0.5)], Scale(0, 4), Scale(0, 1))
    'M0 1000L250 0M750 500h0'
    """
    drawn = ("L".join(f"{a} {b}" for a, b in run) + ("h0" if len(run) == 1 else "") for run in thinned(points, x, y))
    return "".join(f"M{run}" for run in drawn)


def running_mean(points: Points, window: int) -> list[tuple[float, float | None]]:
    """The mean of a value and those before it, `window` in all, where so many are there and none is missing.

    Of many points each n-th gets one, the last among them: as many as there are columns.

    >>> running_mean([(1, 2.0), (2, 4.0), (3, None), (4, 6.0)], 2)
    [(1, None), (2, 3.0), (3, None), (4, None)]
    """
    means: list[tuple[float, float | None]] = []
    stride = max(1, len(points) // COLUMNS)
    for i in range((len(points) - 1) % stride, len(points), stride):
        last = [y for _, y in points[max(0, i + 1 - window) : i + 1] if y is not None and has_place(y)]
        means.append((points[i][0], sum(y / window for y in last) if len(last) == window else None))
    return means


def _span(values: Sequence[float], digits: int = 4) -> str:
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"


def _values(found: dict[str, list[float]]) -> str:
    said = []
    for name, values in found.items():
        finite = [value for value in values if math.isfinite(value)]
        said.append(" ".join([name, *([_span(finite)] if finite else []), *(["NaN"] if finite != values else [])]))
    return ", ".join(said)
