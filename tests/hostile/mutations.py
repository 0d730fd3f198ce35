"""Small damages to a file's bytes, drawn by hypothesis: flip, overwrite, insert, delete, cut, splice, absurd values."""

import re
import struct

from hypothesis import strategies as st

ENDS = 400  # bytes at either end, where headers and directories are: two of three places are there
EXTREMES = (0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
TOKENS = re.compile(rb'"[^"]*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null')
ABSURD = (
    *(b"-1", b"0", b"1", b"3", b"4611686018427387904", b"18446744073709551616", b"1e400", b"-0.5", b"NaN", b"Infinity"),
    *(b"true", b"null", b'""', b'"x"', b'"\\ud800"', b'"\\u001b[2J"', b'"../x"', b"[]", b"{}", b"[1]", b"[" * 5000),
    b"9" * 5000,
)

Step = tuple[str, int, int, bytes]
steps = st.lists(
    st.tuples(
        st.sampled_from(("flip", "overwrite", "insert", "delete", "cut", "splice", "extreme", "token", "token")),
        st.integers(0, 2**20),
        st.integers(0, 2**20),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def mutate(content: bytes, damage: list[Step], *, is_text: bool) -> bytes:
    """The bytes after every step of the damage; the same for the same arguments."""
    for step, a, b, data in damage:
        if content:
            content = _apply(content, step if is_text or step != "token" else "flip", a, b, data)
    return content


def _apply(content: bytes, step: str, a: int, b: int, data: bytes) -> bytes:
    at = _place(len(content), a)
    match step:
        case "flip":
            return content[:at] + bytes([content[at] ^ 1 << b % 8]) + content[at + 1 :]
        case "overwrite":
            return content[:at] + data + content[at + len(data) :]
        case "insert":
            return content[:at] + data + content[at:]
        case "delete":
            return content[:at] + content[at + 1 + b % 16 :]
        case "cut":
            return content[:at]
        case "splice":
            source = _place(len(content), b)
            return content[:at] + content[source : source + 64] + content[at:]
        case "extreme":
            width = ("<Q", "<I")[b % 2]
            number = struct.pack(width, EXTREMES[b % len(EXTREMES)] % 2 ** (8 * struct.calcsize(width)))
            return content[:at] + number + content[at + len(number) :]
    found = list(TOKENS.finditer(content))
    if not found:
        return content
    token = found[a % len(found)]
    return content[: token.start()] + ABSURD[b % len(ABSURD)] + content[token.end() :]


def _place(size: int, choice: int) -> int:
    """A position: anywhere, or near the start, or near the end."""
    where, offset = choice % 3, choice // 3
    if where == 0:
        return offset % size
    near = offset % min(size, ENDS)
    return near if where == 1 else size - 1 - near
