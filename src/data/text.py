"""The text objective: plain documents, every token a target, as in pretraining.

A document is a paragraph of a .txt file (blank lines separate them) or the "text" of one line of a .jsonl file. It is
encoded between begin- and end-of-text; one longer than the window becomes several examples, each beginning with the
token its predecessor ended with. So every token after the first is a target exactly once, whatever the window.

Memory: the documents, which take a string's header each: 1 to 2 bytes per byte of a file of prose in Latin script, 15
in a file of two-letter paragraphs. Beside them one document while it is read.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.progress import track

from data.supervise import Example, TokenEncoder, check_max_length
from files.fields import Place, check_text, text_field
from files.rows import LINE_SUFFIXES, read_lines, read_rows


def load_texts(paths: Iterable[str | Path]) -> list[str]:
    """The documents of .txt and .jsonl files, in order.

    Raises:
        FileError: another kind of file, no text, or text that cannot be encoded; file and line are named.
        OSError: a file cannot be read.
    """
    texts: list[str] = []
    for path in map(Path, paths):
        if path.suffix in LINE_SUFFIXES:
            found: Iterator[str] = (text_field(row, "text", place) for _, place, row in read_rows(path))
        elif path.suffix == ".txt":
            found = _paragraphs(path)
        else:
            raise Place(path).unsuitable(
                f"plain text comes from .txt or .jsonl files, not from {path.suffix or 'this'}", "rename or convert it"
            )
        before = len(texts)
        texts += [text.strip() for text in found if text.strip()]
        if len(texts) == before:
            raise Place(path).unsuitable("holds no text", "leave it out")
    return texts


def _paragraphs(path: Path) -> Iterator[str]:
    """Runs of lines that are not blank."""
    paragraph = bytearray()  # smaller than a list of lines
    for number, line in read_lines(path):
        if line.strip():
            check_text(line, "the text", Place(path, f"line {number}"))
            paragraph += line.encode() + b"\n"
        elif paragraph:
            yield paragraph.decode()
            paragraph.clear()
    yield paragraph.decode()


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
