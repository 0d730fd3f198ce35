"""The text objective: plain documents, every token a target, as in pretraining.

A document is a paragraph of a .txt file (blank lines separate them) or the "text" of one line of a .jsonl file. It is
encoded between begin- and end-of-text; one longer than the window becomes several examples, each beginning with the
token its predecessor ended with. So every token after the first is a target exactly once, whatever the window.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.progress import track

from data.records import LINE_SUFFIXES, check_text, read_rows, read_text, text_field
from data.supervise import Example, TokenEncoder, check_max_length


def load_texts(paths: Iterable[str | Path]) -> list[str]:
    """The documents of .txt and .jsonl files, in order. ValueError names the file, and the row where it has one."""
    texts: list[str] = []
    for path in map(Path, paths):
        if path.suffix in LINE_SUFFIXES:
            found = [text_field(row, "text", where) for _, where, row in read_rows(path)]
        elif path.suffix == ".txt":
            content = read_text(path)
            check_text(content, str(path))
            found = re.split(r"\n\s*\n", content.replace("\r\n", "\n"))
        else:
            raise ValueError(f"{path}: plain text comes from .txt or .jsonl files, not from {path.suffix or 'this'}")
        found = [text.strip() for text in found if text.strip()]
        if not found:
            raise ValueError(f"{path}: holds no text")
        texts += found
    return texts


def text_examples(
    texts: Sequence[str], tokenizer: TokenEncoder, *, max_length: int, progress: bool = False
) -> list[Example]:
    """Encode documents between begin- and end-of-text, in windows of at most `max_length` tokens.

    >>> class Letters:
    ...     def encode(self, text, *, bos=False, eos=False):
    ...         return [1] * bos + [ord(c) for c in text] + [2] * eos
    >>> [example.token_ids for example in text_examples(["ABC"], Letters(), max_length=3)]
    [[1, 65, 66], [66, 67, 2]]

    Raises:
        ValueError: a window of fewer than two tokens has nothing to predict; no texts.
    """
    check_max_length(max_length)
    if not texts:
        raise ValueError("no texts; name at least one .txt or .jsonl file")
    examples: list[Example] = []
    for text in track(texts, "tokenizing", disable=not progress, transient=True):
        token_ids = tokenizer.encode(text, bos=True, eos=True)
        for start in range(0, len(token_ids) - 1, max_length - 1):
            window = token_ids[start : start + max_length]
            examples.append(Example(window, [False] + [True] * (len(window) - 1)))
    return examples
