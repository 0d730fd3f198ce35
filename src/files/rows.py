"""Files of JSON and of text that nobody vouches for: read in one pass, row by row, without holding the whole.

    read_rows    rows of a *.jsonl file (a line each) or of one JSON list (parsed as it comes, element by element)
    read_json    one value, such as an answer key
    read_lines   lines of text

What is no regular file (a pipe would be waited for without end, a device has none), what is another format under this
name, bytes that are not UTF-8, a literal that JSON does not have (NaN), and a key that occurs twice in one object (one
of the two values would be lost) are errors of `files`' family, with file, place and remedy.

Memory, beside what the caller keeps and a few `WINDOW`s: one row or one value while it is parsed. Of n bytes it takes
3 n to 4 n in Latin script; 13 n where a character beyond U+FFFF (an emoji) makes Python store 4 bytes for each; 28 n
where it is all brackets, for Python's objects outgrow their text. Hence `LARGEST_VALUE`.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from files.fields import Place, kind, quoted
from files.reading import require_regular_file

LINE_SUFFIXES = (".jsonl", ".ndjson")
LARGEST_VALUE = 64 * 2**20
"""Bytes of one value (in a list: characters): twenty times the largest exam published as one object."""
WINDOW = 2**18
"""Characters of a list's text to begin with."""
_LIST_REMEDY = 'a .json file is one list [{...}, {...}]; name a file of one object per line "*.jsonl"'
_BLANK = re.compile(r"[ \t\n\r]*")
_NEAR = 16  # no literal and no escape of JSON is longer: an error so near the window's end may be the window's
_OTHERS = {
    b"\x1f\x8b": ("gzip", "gunzip it"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"BZh": ("bzip2", "unpack it"),
    b"\xfd7zXZ": ("xz", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("zstandard", "unpack it"),
    b"PAR1": ("Parquet", "export it as JSON lines"),
    b"\x89HDF": ("HDF5", "export it as JSON lines"),
    b"\x80": ("a Python pickle", "export it as JSON lines"),
    b"\xff\xfe": ("UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "fetch it (git lfs pull)"),
    b"<!DOCTYPE": ("an HTML page", "download the file itself"),
    b"<html": ("an HTML page", "download the file itself"),
}


# --- Rows ---


def read_rows(path: Path) -> Iterator[tuple[int, Place, Any]]:
    """Yield (number from 1, place, parsed JSON value) for every row of a JSON list or a file of lines."""
    return rows_of_lines(path) if path.suffix in LINE_SUFFIXES else _rows_of_list(path)


def holds_rows(path: Path) -> bool:
    """Whether `read_rows` is the way to read it: a file of lines, or one that begins as a list."""
    if path.suffix in LINE_SUFFIXES:
        return True
    with opened(path) as file:
        start = file.read(WINDOW).decode("utf-8-sig", errors="replace")
    return start.lstrip(" \t\r\n").startswith("[")


def rows_of_lines(path: Path, *, own: bool = False) -> Iterator[tuple[int, Place, Any]]:
    """The values of a file of lines. `own`: this program appends to it, which a crash may have cut short in the last
    line (left out if its newline is missing), and writes NaN where a measurement was none."""
    decoder = _Decoder(nan=own)
    for number, line in read_lines(path, whole=own, limit=LARGEST_VALUE):
        if line.strip():
            place = Place(path, f"line {number}")
            yield number, place, decoder.whole(line, place, "write one object {...} per line")


def _rows_of_list(path: Path) -> Iterator[tuple[int, Place, Any]]:
    """The elements of the JSON list that a file is, each parsed when it is asked for."""
    decoder = _Decoder()
    with _opened_text(path) as file:
        window = _Window(file)
        if window.next() != "[":
            root = read_json(path, remedy=_LIST_REMEDY)
            raise Place(path).unsuitable(f"the root is {kind(root)}, expected a list of objects", _LIST_REMEDY)
        window.start += 1
        number = 0
        while (character := window.next()) != "]":
            if not character:
                raise window.error("the list does not end", Place(path, f"after row {number}"))
            if number and character != ",":
                raise window.error("expected a comma or the list's end", Place(path, f"after row {number}"))
            if number:
                window.start += 1
            number += 1
            place = Place(path, f"row {number}")
            window.next()
            yield number, place, window.value(decoder, place)
        window.start += 1
        if window.next():
            raise window.error("something follows the list's end", Place(path, f"after row {number}"))


class _Window:
    """A stretch of a file's text that moves on with the parsing and grows while a value does not fit.

    Attributes:
        start: where in `text` the parsing stands; what is before it is dropped at the next growth.
    """

    def __init__(self, file: io.TextIOBase) -> None:
        self._file, self._text, self._lines = file, "", 1
        self.start = 0

    def next(self) -> str:
        """The next character that is no white space, which `start` is moved to; "" at the file's end."""
        while True:
            end = _BLANK.match(self._text, self.start).end()  # type: ignore[union-attr]  # it matches the empty string
            self.start = end
            if end < len(self._text) or not self._grow():
                return self._text[end : end + 1]

    def value(self, decoder: "_Decoder", place: Place) -> Any:
        """The value that begins at `start`, which is moved behind it."""
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self.start)
            except json.JSONDecodeError as error:
                if len(self._text) - self.start > LARGEST_VALUE:
                    raise _too_large(place, LARGEST_VALUE) from None
                inside = error.pos < len(self._text) - _NEAR and not error.msg.startswith("Unterminated string")
                if inside or not self._grow():
                    self.start = error.pos
                    raise self.error(error.msg, place) from None
            except (ValueError, RecursionError) as error:
                raise self.error(reason(error), place) from None
            else:
                if end < len(self._text) - _NEAR or not self._grow():  # a number may go on behind the window
                    self.start = end
                    decoder.check(place)
                    return value
            decoder.repeated.clear()

    def error(self, problem: str, place: Place) -> ValueError:
        line = self._lines + self._text.count("\n", 0, self.start)
        return place.damaged(f"not valid JSON ({problem}, in line {line})", _LIST_REMEDY)

    def _grow(self) -> bool:
        """Drop what is done, and read as much again as is left; whether there was more."""
        more = self._file.read(max(WINDOW, len(self._text) - self.start))
        if not more:
            return False
        self._lines += self._text.count("\n", 0, self.start)
        self._text, self.start = self._text[self.start :] + more, 0
        return True


# --- Whole values ---


def read_json(path: Path, *, remedy: str, limit: int = LARGEST_VALUE) -> Any:
    """The one JSON value in a file; `remedy` is for a file that is not valid JSON, `limit` in bytes."""
    place = Place(path)
    return _Decoder().whole(read_text(path, limit=limit), place, remedy)


class _Decoder(json.JSONDecoder):
    """JSON as its standard has it: no NaN (unless asked for), and no key twice in one object."""

    def __init__(self, *, nan: bool = False) -> None:
        super().__init__(object_pairs_hook=self._object, parse_constant=float if nan else self._constant)
        self.repeated: list[str] = []

    def whole(self, text: str, place: Place, remedy: str) -> Any:
        """The value of a text that holds nothing else."""
        try:
            value = self.decode(text)
        except json.JSONDecodeError as error:
            where = f", in line {error.lineno}" if "\n" in text.strip() else f", at character {error.pos}"
            raise place.damaged(f"not valid JSON ({error.msg}{where})", remedy) from None
        except (ValueError, RecursionError) as error:
            raise place.damaged(f"not valid JSON ({reason(error)})", remedy) from None
        self.check(place)
        return value

    def check(self, place: Place) -> None:
        """Refuse the value that was just decoded if one of its objects had a key twice."""
        if self.repeated:
            raise place.damaged(f"the key {quoted(self.repeated[0])} occurs twice in one object", "keep one of them")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            self.repeated.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return row

    @staticmethod
    def _constant(name: str) -> Any:
        raise ValueError(f"{name}, which is no number of JSON's")


def reason(error: ValueError | RecursionError) -> str:
    """Why Python could not parse, in words that are not about Python."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "a number of thousands of digits" if "integer string conversion" in str(error) else str(error)


# --- Text ---


def read_text(path: Path, *, limit: int = LARGEST_VALUE) -> str:
    """A file's text, without a byte order mark; `limit` in bytes."""
    if require_regular_file(path) > limit:
        raise _too_large(Place(path), limit)
    with opened(path) as file:
        raw = file.read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def read_lines(path: Path, *, whole: bool = False, limit: int = -1) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line). Only \\n and \\r\\n end a line: a JSON string may hold U+2028 or U+0085 raw.

    Args:
        whole: leave out a last line without its newline.
        limit: of a line, in bytes; -1 for none.
    """
    with opened(path) as file:
        for number, raw in enumerate(iter(partial(file.readline, limit), b""), start=1):
            if not raw.endswith(b"\n"):
                if len(raw) == limit:
                    raise _too_large(Place(path, f"line {number}"), limit)
                if whole:
                    return
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise _not_utf8(path) from None
            yield number, line.removesuffix("\n").removesuffix("\r")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file to read bytes from, which does not begin as one of the formats that are no text."""
    require_regular_file(path)
    with path.open("rb") as file:
        head = file.read(max(map(len, _OTHERS)))
        for magic, (name, remedy) in _OTHERS.items():
            if head.lower().startswith(magic.lower()):
                raise Place(path).unsuitable(f"the content is {name}, expected text in UTF-8", remedy)
        if head.startswith(b"\0") or head.count(b"\0", 0, 4) > 1:
            raise Place(path).unsuitable("the content is binary, or UTF-16, expected text in UTF-8", "convert it")
        file.seek(0)
        yield file


@contextmanager
def _opened_text(path: Path) -> Iterator[io.TextIOBase]:
    with opened(path) as file:
        try:
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        except UnicodeDecodeError:
            raise _not_utf8(path) from None


def _too_large(place: Place, limit: int) -> ValueError:
    return place.unsuitable(f"larger than {limit:,} bytes, more than is needed", "make sure that it is the right file")


def _not_utf8(path: Path) -> ValueError:
    """Name the first byte that is not UTF-8, in a second pass: a decoder of windows does not know where it stands."""
    offset = 0
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return Place(path, f"line {number}").damaged(
                    f"byte 0x{line[error.start]:02x} at offset {offset + error.start} is not UTF-8",
                    "convert the file (iconv -t UTF-8)",
                )
            offset += len(line)
    return Place(path).damaged("not UTF-8 a moment ago, and now it is", "let nobody write to it meanwhile")
