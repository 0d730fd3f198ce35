"""Were two runs asked alike: the same texts, in the same way? If not, a comparison of them is of more than models."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from data.exams import Question
from evaluation.sitting import Sitting


def digest(things: Sequence[object]) -> str:
    """A short name for things, such as questions, with all that they hold, in their order."""
    return hashlib.sha256(repr(list(things)).encode(errors="surrogatepass")).hexdigest()[:16]


def text_digest(questions: Sequence[Question]) -> str:
    """A short name for what is asked, in whatever order: ids, contexts, texts and options."""
    return digest(sorted((q.id, q.context, q.text, list(q.options.items())) for q in questions))


def check_same_texts(settings: Mapping[str, Any], questions: Sequence[Question]) -> None:
    """Make sure that an earlier report, whose settings these are, is about questions with these texts.

    Raises:
        ValueError: it is not. A report that does not say passes.
    """
    if settings.get("questions_digest", now := text_digest(questions)) != now:
        raise ValueError(
            "the runs are not about the same questions: they have the same numbers and other texts; score both with "
            "the same version of the exam"
        )


def asked_otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two reports' settings say differently about how the questions were asked; a comparison is then of more than
    models.

    >>> asked_otherwise({"method": "letter", "shots": 0, "base": "a"}, {"method": "text", "shots": 0, "base": "b"})
    ['method letter then, text now']
    """
    names = [*(field.name for field in fields(Sitting)), "template", "shots_from"]
    pairs = {name: (before.get(name, "unset"), now.get(name, "unset")) for name in names}
    return [f"{name} {then} then, {after} now" for name, (then, after) in pairs.items() if then != after]
