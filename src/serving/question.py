"""A request from the page: what to ask, of which side, and how tokens are chosen. Nothing in it is trusted."""

from dataclasses import dataclass, fields
from typing import Any

SIDES = ("base", "adapter")
"""Who may answer: the model without its adapter, and with it."""

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 5),
    "top_k": (1, 1_000_000),
    "top_p": (0.001, 1),
    "repetition_penalty": (0.1, 10),
    "max_new_tokens": (1, 4096),
    "seed": (0, 2**53 - 1),  # JavaScript's largest exact integer
}
"""The least and the largest value of every number; the page's controls have the same."""
WHOLE = ("top_k", "max_new_tokens", "seed")
OPTIONAL = ("top_k", "top_p")


@dataclass(frozen=True)
class Question:
    """One question. Its fields are the request's keys, its defaults those of the page.

    Attributes:
        sides: whose answers are wanted, in this order; see `SIDES`.
        instruction, input: the slots of the prompt template.
        temperature, top_k, top_p, repetition_penalty: see `llama.decoding.Sampling`.
        max_new_tokens: of each answer at most; less where the model's window ends before.
        seed: of the draws; every side draws with the same.
    """

    instruction: str
    sides: tuple[str, ...]
    input: str = ""
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0


def parse_question(row: Any) -> Question:
    """A question from decoded JSON.

    Raises:
        ValueError: a key is missing or unknown, or its value is of the wrong type or out of range.

    >>> parse_question({"instruction": "What is gout?", "sides": ["base"], "top_k": 0})
    Traceback (most recent call last):
    ValueError: top_k = 0 must be from 1 to 1000000
    """
    if not isinstance(row, dict):
        raise ValueError('the request must be a JSON object: {"instruction": ..., "sides": ["base"]}')
    known = [field.name for field in fields(Question)]
    if unknown := sorted(row.keys() - set(known)):
        raise ValueError(f"unknown key {unknown[0]!r}; the known ones are {', '.join(known)}")
    for name in ("instruction", "input"):
        if not isinstance(row.get(name, ""), str):
            raise ValueError(f"{name} must be a string")
    if not row.get("instruction", "").strip():
        raise ValueError("instruction is empty: ask a question")
    for name in RANGES.keys() & row.keys():
        _check_number(name, row[name])
    if not row.get("temperature") and (row.get("top_k") or row.get("top_p")):
        raise ValueError("top_k and top_p need a draw: give a temperature above 0")
    return Question(**{**row, "sides": _parse_sides(row.get("sides"))})


def _parse_sides(value: Any) -> tuple[str, ...]:
    known = isinstance(value, list) and all(side in SIDES for side in value)
    if not known or not 0 < len(set(value)) == len(value):
        raise ValueError('sides must be ["base"], ["adapter"], or both in a list')
    return tuple(value)


def _check_number(name: str, value: Any) -> None:
    if value is None and name in OPTIONAL:
        return
    if isinstance(value, bool) or not isinstance(value, int if name in WHOLE else (int, float)):
        raise ValueError(f"{name} must be a {'whole ' if name in WHOLE else ''}number")
    low, high = RANGES[name]
    if not low <= value <= high:  # NaN fails too
        raise ValueError(f"{name} = {value} must be from {low} to {high}")
