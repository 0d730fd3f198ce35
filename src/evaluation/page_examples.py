"""Of an exam's page the questions shown: a spread of them, not those that flatter the model."""

from collections.abc import Iterator, Sequence

from data.exams import Question
from evaluation.result import Result
from pages import Choice, Example

EXAMPLES = 2
"""Of each kind."""


def worked_examples(results: Sequence[Result], questions: Sequence[Question]) -> Iterator[Example]:
    """Right and sure, wrong and sure, undecided; of generated answers some of each outcome. None is shown twice."""
    asked = {question.id: question for question in questions}
    taken: set[str] = set()
    for title, members in _kinds([row for row in results if row.id in asked]):
        fresh = [row for row in members if row.id not in taken][:EXAMPLES]
        taken |= {row.id for row in fresh}
        for row in fresh:
            yield _example(asked[row.id], row, title)


def _example(question: Question, row: Result, title: str) -> Example:
    shares = row.probabilities
    choices = [
        Choice(letter, text, shares.get(letter), letter == row.answer, letter == row.predicted)
        for letter, text in question.options.items()
    ]
    tries = [("model" if len(row.texts) == 1 else f"try {i}", text) for i, text in enumerate(row.texts, start=1)]
    return Example(
        heading=f"{title}: {row.id}",
        verdict="good" if row.correct else "bad",
        question=question.text,
        background=question.context,
        choices=choices,
        said=tries,
    )


def _kinds(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    scored = [row for row in results if row.probabilities]
    if not scored:
        return [
            ("right", [row for row in results if row.correct and not row.accident]),
            ("wrong", [row for row in results if row.predicted not in (None, row.answer) and not row.accident]),
            ("no answer", [row for row in results if row.predicted is None]),
            ("by accident", [row for row in results if row.accident]),
        ]
    surest = sorted(scored, key=lambda row: (-max(row.probabilities.values()), row.id))
    return [
        ("right and sure", [row for row in surest if row.correct]),
        ("wrong and sure", [row for row in surest if not row.correct]),
        ("undecided", sorted(scored, key=lambda row: (_lead(row), row.id))),
    ]


def _lead(row: Result) -> float:
    """How much more probable the best option is than the next."""
    first, second = sorted(row.probabilities.values(), reverse=True)[:2]
    return first - second
