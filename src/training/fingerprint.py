"""What makes two runs the same run: settings, data, plan of steps, tokenizer, and the base that is not trained."""

from collections.abc import Collection, Mapping
from pathlib import Path

from files import UnsuitableFileError

PLAIN_WORDS = {
    "base": "the base's weights",
    "tokenizer": "the tokenizer",
    "data": "the training tokens",
    "plan": "the order of the rows",
}
"""Digests in a fingerprint; everything else is a setting by its own name."""


def check_fingerprint(
    checkpoint: Path, then: Mapping[str, str], now: Mapping[str, str], may_change: Collection[str] = ()
) -> None:
    """Refuse to go on with another run's checkpoint.

    Args:
        may_change: settings that a continuation is free to change, for the message.

    Raises:
        UnsuitableFileError: names every difference with both values.
    """
    different = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    if not different:
        return
    differences = [
        f"{PLAIN_WORDS.get(name, name)}: {_value(name, then)} then, {_value(name, now)} now" for name in different
    ]
    remedy = "set them as they were, or begin a new run in another --output"
    if may_change:
        remedy += f"; what may differ: {', '.join(sorted(may_change))}"
    problem = f"it belongs to a run with other settings; {'; '.join(differences)}"
    raise UnsuitableFileError(problem, file=checkpoint, remedy=remedy)


def _value(name: str, fingerprint: Mapping[str, str]) -> str:
    """A setting in full, the beginning of a digest."""
    value = fingerprint.get(name, "(unset)")
    return value[:12] if name in PLAIN_WORDS else value
