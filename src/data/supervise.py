"""Supervision: a record becomes token ids, each marked as target of the loss or not.

    max_φ Σ_{(x, y)} Σ_t log P_φ(y_t | x, y_<t)          the inner sum runs over the answer's tokens only

Where the answer begins is found on the joint encoding. Encoding prompt and answer apart and joining the ids would put a
stray "▁" (SentencePiece's dummy prefix) in front of the answer, which no generated text has. So prompt + answer is
encoded as one string, and the answer begins where that encoding first departs from the prompt's own: a token that holds
the prompt's last and the answer's first characters counts as the answer's.

The answer ends with the end-of-text id, appended by id. A row longer than the window is cut from the right, as Alpaca
and MedAlpaca cut it; the end-of-text id is then lost with the rest, for putting one after the cut would teach the model
to stop in mid-sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.progress import track

from data.records import Record
from data.templates import PromptTemplate

NAMED_ROWS = 3  # rows of each kind that a report names


class TokenEncoder(Protocol):
    """What is needed of a tokenizer; `llama.Tokenizer` has it."""

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of a text."""
        ...


@dataclass(frozen=True)
class Example:
    """Token ids and, for each, whether it is a target: whether the loss asks the model to predict it.

    The first token is never a target, since nothing precedes it. Shifting is the collation's work.
    """

    token_ids: list[int]
    supervised: list[bool]

    def __post_init__(self) -> None:
        if not self.token_ids or len(self.token_ids) != len(self.supervised):
            raise ValueError(
                f"an example of {len(self.token_ids)} tokens and {len(self.supervised)} supervision marks; "
                "expected one mark per token and at least one token"
            )

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class SupervisionReport:
    """What became of the rows. rows = kept + dropped_empty_output + dropped_prompt_too_long.

    Attributes:
        rows: rows given.
        kept: examples made.
        truncated: kept rows that were cut, so that their answer lacks its end and the end-of-text id.
        prompt_only: kept rows (only when the prompt is trained on) whose whole answer was cut away.
        dropped_empty_output: rows whose answer is empty or blank, or encodes to no token at all.
        dropped_prompt_too_long: rows whose prompt fills the window, so that no answer token is left.
        tokens, supervised_tokens: totals over the kept examples.
        full_lengths: tokens of every non-empty row before cutting.
        named: for each kind of loss the first few rows, as "source:row".
    """

    rows: int
    kept: int
    truncated: int
    prompt_only: int
    dropped_empty_output: int
    dropped_prompt_too_long: int
    tokens: int
    supervised_tokens: int
    full_lengths: tuple[int, ...]
    named: dict[str, tuple[str, ...]]

    def lines(self) -> list[str]:
        """The report in words, one line per kind of loss that occurred."""
        lines = [
            f"{self.kept:,} of {self.rows:,} rows kept: {self.tokens:,} tokens, {self.supervised_tokens:,} supervised"
        ]
        for field, meaning in (
            ("truncated", "cut at the window's end"),
            ("prompt_only", "kept for their prompt alone, the whole answer was cut away"),
            ("dropped_empty_output", "dropped, the output is empty"),
            ("dropped_prompt_too_long", "dropped, the prompt alone fills the window"),
        ):
            if count := getattr(self, field):
                more = ", ..." if count > NAMED_ROWS else ""
                lines.append(f"{count:,} rows {meaning} ({', '.join(self.named[field])}{more})")
        return lines


def supervise(
    record: Record,
    template: PromptTemplate,
    tokenizer: TokenEncoder,
    *,
    max_length: int,
    train_on_prompt: bool = False,
    add_bos: bool = True,
    add_eos: bool = True,
) -> Example | None:
    """The record as an example of at most `max_length` tokens, or None if no supervised token is left.

    >>> class Letters:
    ...     def encode(self, text, *, bos=False, eos=False):
    ...         return [1] * bos + [ord(c) for c in text] + [2] * eos
    >>> short = PromptTemplate("short", "{instruction}{input}>", "{instruction}>", response_split=">")
    >>> example = supervise(Record("Q", "", "AB"), short, Letters(), max_length=8)
    >>> example.token_ids, example.supervised  # <s> Q > A B </s>
    ([1, 81, 62, 65, 66, 2], [False, False, False, True, True, True])

    Args:
        max_length: window in tokens, begin- and end-of-text included.
        train_on_prompt: supervise everything after the first token, as MedAlpaca and Alpaca-LoRA do by default;
            otherwise the answer only, as Stanford Alpaca does.
        add_bos, add_eos: put the begin- and end-of-text ids around the text.
    """
    check_max_length(max_length)
    if not record.output.strip():
        return None
    token_ids, boundary = encode_jointly(
        template.render(record.instruction, record.input), record.output, tokenizer, add_bos=add_bos, add_eos=add_eos
    )
    if boundary >= len(token_ids):
        return None
    return _window(token_ids, 1 if train_on_prompt else boundary, max_length)


def encode_jointly(
    prompt: str, answer: str, tokenizer: TokenEncoder, *, add_bos: bool = True, add_eos: bool = True
) -> tuple[list[int], int]:
    """Encode prompt + answer as one string; the second result is the index of the answer's first token."""
    token_ids = tokenizer.encode(prompt + answer, bos=add_bos, eos=add_eos)
    return token_ids, common_prefix(token_ids, tokenizer.encode(prompt, bos=add_bos))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with.

    >>> common_prefix([1, 5, 9, 4], [1, 5, 7])
    2
    """
    differs = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differs, min(len(a), len(b)))


def build_examples(
    records: Sequence[Record],
    template: PromptTemplate,
    tokenizer: TokenEncoder,
    *,
    max_length: int,
    train_on_prompt: bool = False,
    add_bos: bool = True,
    add_eos: bool = True,
    progress: bool = True,
) -> tuple[list[Example], SupervisionReport]:
    """`supervise` every record, and account for each that was cut or dropped.

    Raises:
        ValueError: nothing is left to train on.
    """
    examples: list[Example] = []
    full_lengths: list[int] = []
    fates: dict[str, list[str]] = {
        fate: [] for fate in ("truncated", "prompt_only", "dropped_empty_output", "dropped_prompt_too_long")
    }
    check_max_length(max_length)
    for number, record in enumerate(track(records, "tokenizing", disable=not progress, transient=True), start=1):
        row = f"{record.source or 'record'}:{record.row or number}"
        if not record.output.strip():
            fates["dropped_empty_output"].append(row)
            continue
        prompt = template.render(record.instruction, record.input)
        token_ids, boundary = encode_jointly(prompt, record.output, tokenizer, add_bos=add_bos, add_eos=add_eos)
        if boundary >= len(token_ids):
            fates["dropped_empty_output"].append(row)
            continue
        full_lengths.append(len(token_ids))
        example = _window(token_ids, 1 if train_on_prompt else boundary, max_length)
        if example is None:
            fates["dropped_prompt_too_long"].append(row)
            continue
        examples.append(example)
        if len(token_ids) > max_length:
            fates["truncated"].append(row)
        if boundary >= max_length:
            fates["prompt_only"].append(row)
    report = SupervisionReport(
        rows=len(records),
        kept=len(examples),
        **{fate: len(rows) for fate, rows in fates.items()},
        tokens=sum(map(len, examples)),
        supervised_tokens=sum(sum(example.supervised) for example in examples),
        full_lengths=tuple(full_lengths),
        named={fate: tuple(rows[:NAMED_ROWS]) for fate, rows in fates.items()},
    )
    if not examples:
        remedy = "raise max_length" if report.dropped_prompt_too_long else "fill in the outputs"
        raise ValueError(f"nothing to train on at max_length={max_length}: {'; '.join(report.lines())}; {remedy}")
    return examples, report


def check_max_length(max_length: int) -> None:
    """A window of fewer than two tokens has nothing to predict."""
    if max_length < 2:
        raise ValueError(f"max_length={max_length}: a window needs two tokens, one to see and one to predict")


def _window(token_ids: list[int], first_target: int, max_length: int) -> Example | None:
    """Cut from the right; targets are the tokens from `first_target` on, never the first. None if none is left."""
    first_target = max(first_target, 1)
    kept = token_ids[:max_length]
    if len(kept) <= first_target:
        return None
    return Example(kept, [i >= first_target for i in range(len(kept))])
