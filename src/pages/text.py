"""What a page shows of strings and numbers.

A string may come from anywhere: an exam, a config, a model. Markup in it is escaped by the templates; what no escape
can tame is replaced here: control characters, halves of surrogate pairs (which no file can hold), and the marks that
turn the direction of all text that follows. A string without end is cut.
"""

import math
import re

from markupsafe import Markup

LONGEST = 4_000
"""Characters of one string on a page: a case of an exam is 1,000, none known is 3,000."""
REPLACEMENT = "\ufffd"
_UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_LARGE = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def clean(text: str, longest: int = LONGEST) -> str:
    r"""The text without what a page cannot show, and cut where it is long. Line breaks are all "\n".

    >>> clean("a\0b\r\nc"), clean("long" * 9, 5)
    ('a�b\nc', 'longl … (31 characters more)')
    """
    more = len(text) - longest
    text = _UNSHOWABLE.sub(REPLACEMENT, text[:longest].replace("\r\n", "\n").replace("\r", "\n"))
    return f"{text} … ({more:,} characters more)" if more > 0 else text


def shown(value: object) -> Markup | str:
    """What a template writes for a value. Only markup that this package made itself is not escaped afterwards."""
    if isinstance(value, Markup):
        return value
    return "" if value is None else clean(str(value))


def number(value: float | None, digits: int = 4) -> str:
    """A number for a reader: thousands apart, millions and more by letter, so many significant digits.

    >>> [number(x) for x in (1234567, 1234, 12.3456, 0.00002, 0, float("nan"), None)]
    ['1.235 M', '1,234', '12.35', '2e-05', '0', 'nan', '–']
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    for unit, letter in _LARGE:
        if abs(value) >= unit:
            return f"{value / unit:.{digits}g} {letter}" if abs(value) < 1e15 else f"{value:.{digits}g}"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def setting(value: object) -> str:
    """The value of a setting: yes and no, numbers whole or to six digits, a list on one line, or of paths one a line.

    >>> setting(True), setting(10_000), setting(3e-4), setting(("q_proj", "v_proj")), setting(["a/b", "c"])
    ('yes', '10,000', '0.0003', 'q_proj, v_proj', 'a/b\\nc')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ("\n" if any("/" in str(part) for part in value) else ", ").join(map(setting, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def percent(share: float, digits: int = 1) -> str:
    r"""A share in percent.

    >>> percent(0.3125)
    '31.2\xa0%'
    """
    return f"{100 * share:.{digits}f}\u00a0%"


def bytes_text(n_bytes: float) -> str:
    r"""Bytes in powers of 1,000.

    >>> bytes_text(0), bytes_text(999), bytes_text(45_678_900), bytes_text(13.5e9)
    ('0\xa0B', '999\xa0B', '45.7\xa0MB', '13.50\xa0GB')
    """
    for unit, letter, digits in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1)):
        if abs(n_bytes) >= unit:
            return f"{n_bytes / unit:.{digits}f}\u00a0{letter}"
    return f"{n_bytes:.0f}\u00a0B"
