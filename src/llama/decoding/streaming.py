"""Text from a stream of token ids, as early as it is certain: never half a character, never part of a stop string.

A token may hold only some of a character's UTF-8 bytes (byte fallback spells an emoji as four tokens), so bytes wait in
an incremental decoder until their character is whole. A tail that may turn out to begin a stop string waits as well.
"""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from llama.tokenizer import Tokenizer


def stream_text(
    tokenizer: Tokenizer, ids: Iterable[int], stop_strings: Sequence[str] = (), *, continues: bool = False
) -> Iterator[str]:
    """Yield pieces of text, none of them empty; joined they are `tokenizer.decode(ids)` up to the first stop string.

    Ids are taken one at a time, and none after a stop string was found. An incomplete character at the end of the ids
    is yielded as U+FFFD, as `decode` has it.

    Args:
        stop_strings: strings that end the text; of several, the one that begins first. They are not yielded.
        continues: see `Tokenizer.decode`.

    Raises:
        ValueError: at the call, if stop_strings is a single string or holds an empty one.
    """
    if isinstance(stop_strings, str):
        raise ValueError(f"stop_strings = {stop_strings!r} is a single string: give a list, [{stop_strings!r}]")
    if "" in stop_strings:
        raise ValueError("stop_strings holds an empty string, which would end every text at once: leave it out")
    return _stream(tokenizer.decode_bytes(ids, continues=continues), stop_strings)


def _stream(parts: Iterable[bytes], stop_strings: Sequence[str]) -> Iterator[str]:
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    waiting = ""
    for part in parts:
        waiting += utf8.decode(part)
        # From here on a stop string may have begun; one found later than that may still be overtaken by it.
        certain = len(waiting) - possible_stop(waiting, stop_strings)
        start = first_stop(waiting, stop_strings)
        stopped = start is not None and start <= certain
        text = waiting[:start] if stopped else waiting[:certain]
        if text:
            yield text
        if stopped:
            return
        waiting = waiting[certain:]
    waiting += utf8.decode(b"", final=True)
    text = waiting[: first_stop(waiting, stop_strings)]
    if text:
        yield text


def first_stop(text: str, stop_strings: Sequence[str]) -> int | None:
    """Where the first stop string in `text` begins, or None.

    >>> first_stop("Yes. ### Input", ["Input", "###"])
    5
    """
    starts = [start for stop in stop_strings if (start := text.find(stop)) >= 0]
    return min(starts, default=None)


def possible_stop(text: str, stop_strings: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string.

    >>> possible_stop("Yes. ##", ["###"]), possible_stop("Yes.", ["###"])
    (2, 0)
    """
    longest = 0
    for stop in stop_strings:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
