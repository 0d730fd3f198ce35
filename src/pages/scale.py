"""Axes: where on an axis a value lies, as a share of its length, and where its ticks are.

Ticks stand at multiples of 1, 2 or 5 times a power of ten, on a logarithmic axis at such numbers themselves. What is no
finite number has no place; neither has a number beyond ±1e300, whose differences would overflow, nor on a logarithmic
axis one that is not positive.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pages.text import number

MOST = 5
"""Intervals between ticks: more labels would not fit beside each other on a phone."""
_HUGE, _TINY = 1e300, 1e-300
_FLAT = 1e-9
"""A range smaller than this, compared with its values, is drawn as a flat line: its ticks would be all alike."""


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, low < high.

    >>> scale = Scale.over([0.3, 1.7, 2.2])
    >>> scale.low, scale.high, [label for _, label in scale.ticks()], scale.place(1.25)
    (0.0, 2.5, ['0.0', '0.5', '1.0', '1.5', '2.0', '2.5'], 0.5)
    """

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], *, log: bool = False, exact: bool = False) -> "Scale":
        """The axis that holds all values that have a place on one; without any, from 0 to 1 (1 to 10).

        Args:
            log: logarithmic.
            exact: end at the least and the largest value instead of at ticks.
        """
        placed = [value for value in values if has_place(value, log=log)]
        if not placed:
            return cls(1.0, 10.0, True) if log else cls(0.0, 1.0)
        low, high = min(placed), max(placed)
        low, high = (0.0 if abs(value) < _TINY and not log else float(value) for value in (low, high))
        if log:
            low, high = (low / 2, high * 2) if high <= low * (1 + _FLAT) else (low, high)
            return cls(low, high, True) if exact else cls(_below(low), _above(high), True)
        if high - low <= _FLAT * max(abs(low), abs(high)):
            margin = abs(high) / 2 or 0.5
            low, high = low - margin, high + margin
        if exact:
            return cls(low, high)
        step = _step(high - low)
        return cls(math.floor(low / step + _FLAT) * step, math.ceil(high / step - _FLAT) * step)

    def place(self, value: float | None) -> float | None:
        """Where the value lies: 0 at `low`, 1 at `high`; None if it has no place."""
        if value is None or not has_place(value, log=self.log):
            return None
        return self._share(value)

    def _share(self, value: float) -> float:
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, *, whole: bool = False) -> list[tuple[float, str]]:
        """Place and label of each tick, in rising order. `whole`: at whole numbers only."""
        if self.log:
            return [(self._share(value), number(value, 3)) for value in _log_ticks(self.low, self.high)]
        step = _step(self.high - self.low)
        step = max(step, 1.0) if whole else step
        first, last = math.ceil(self.low / step - _FLAT), math.floor(self.high / step + _FLAT)
        label = _labels(step, max(abs(self.low), abs(self.high)))
        return [(min(1.0, max(0.0, self._share(i * step))), label(i * step)) for i in range(first, last + 1)]


def has_place(value: float, *, log: bool = False) -> bool:
    """Whether a value can be drawn at all.

    >>> has_place(0.0), has_place(0.0, log=True), has_place(float("nan")), has_place(1e308)
    (True, False, False, False)
    """
    return math.isfinite(value) and abs(value) <= _HUGE and (not log or value >= _TINY)


def _step(span: float) -> float:
    """The smallest of 1, 2, 5 · 10^k that divides the span into at most MOST intervals."""
    return _above(span / MOST)


def _labels(step: float, largest: float) -> Callable[[float], str]:
    """How all labels of one axis are written: with as many decimals as the step has, or with powers of ten."""
    if largest >= 1e6 or step < 1e-4:
        return lambda value: "0" if value == 0 else f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-")
    decimals = max(0, -math.floor(math.log10(step) + _FLAT))
    return lambda value: f"{value:,.{decimals}f}"


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; between them 2 and 5 where there are few, and not all of them where there are many."""
    first, last = math.floor(math.log10(low) + _FLAT), math.ceil(math.log10(high) - _FLAT)
    factors = (1.0, 2.0, 5.0) if last - first <= 3 else (1.0,)
    stride = max(1, math.ceil((last - first) / MOST))
    found = [factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors]
    return [value for value in found if low * (1 - _FLAT) <= value <= high * (1 + _FLAT)]


def _below(value: float) -> float:
    """The largest of 1, 2, 5 · 10^k that is not above the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(factor * power for factor in (0.5, 1, 2, 5) if factor * power <= value * (1 + _FLAT))


def _above(value: float) -> float:
    """The smallest of 1, 2, 5 · 10^k that is not below the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return min(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= value * (1 - _FLAT))
