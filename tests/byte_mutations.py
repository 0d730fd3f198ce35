"""Damage to a file's bytes, as disks, networks and people with bad intentions do it; drawn by hypothesis."""

import os
import re

from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
"""Examples per kind of file; the environment variable is for long runs by hand."""

HOSTILE_TOKENS = [
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\xf0\x9f", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\r", b"\n", b"\x1b[2J"),
    *(b"\\ud800", b"\\udc00", b"\\u0000", b"\\", b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"=", b".", b"#"),
    *(b"null", b"true", b"false", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"9" * 5000, b"0.1", b'""', b"{}"),
    *(b"[]", b"[" * 3000, b'{"a":' * 3000, b"a." * 500, b"\x1f\x8b", b"PK\x03\x04", b"\x80\x04", b"<html>"),
]

SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.e+-]*|true|false|null')
HOSTILE_VALUES = [
    *(
        b"null",
        b"true",
        b"false",
        b"0",
        b"-1",
        b"3",
        b"2.5",
        b"1e999",
        b"-0.0",
        b"NaN",
        b"1" + b"0" * 400,
        b"[]",
        b"{}",
    ),
    *(b'""', b'" "', b'"A"', b'"B"', b'"1"', b'"step1"', b'"\\ud800"', b'"\\u0000"', b'"\\n\\u001b[2J"', b'"no"'),
    *(b'"{input}"', b'"' + b"x" * 9000 + b'"', b'["a"]', b"[null]", b'{"a": "b"}', b'{"A": null}', b"[[[[[]]]]]"),
]


@st.composite
def retyped(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with one to three of its strings, numbers or constants replaced: still well formed, no longer right."""
    data = whole
    for _ in range(draw(st.integers(1, 3))):
        found = list(SCALAR.finditer(data))
        if not found:
            return data
        at = found[draw(st.integers(0, len(found) - 1))]
        data = data[: at.start()] + draw(st.sampled_from(HOSTILE_VALUES)) + data[at.end() :]
    return data


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` after one to four damages: a bit flipped, bytes overwritten, inserted, deleted, cut off or copied."""
    data = whole
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            return data
        at, length = draw(st.integers(0, len(data) - 1)), draw(st.integers(1, 40))
        match draw(st.sampled_from(["flip", "overwrite", "insert", "delete", "cut", "splice"])):
            case "flip":
                data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
            case "overwrite":
                new = draw(st.binary(min_size=1, max_size=8) | st.sampled_from(HOSTILE_TOKENS))
                data = data[:at] + new + data[at + len(new) :]
            case "insert":
                new = draw(st.binary(min_size=1, max_size=8) | st.sampled_from(HOSTILE_TOKENS))
                data = data[:at] + new + data[at:]
            case "delete":
                data = data[:at] + data[at + length :]
            case "cut":
                data = data[:at]
            case "splice":
                origin = draw(st.integers(0, len(data) - 1))
                data = data[:at] + data[origin : origin + length] + data[at:]
    return data
