"""`Result`: what a model made of one question, whichever way it was asked.

A likelihood protocol scores every option, and the prediction is the highest score. A generating protocol has texts
instead, and the prediction is what a parser found in the last of them, or None: nothing acceptable was said, which
counts as wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from data.exams import Question
from evaluation.statistics import Accuracy


@dataclass(frozen=True)
class Result:
    """What a model made of one question.

    Attributes:
        id, step, seen, answer: the question's.
        letters: of its options, in the order shown.
        predicted: the model's answer; None where it gave none.
        scores: option letter -> score, natural logarithm; empty for a generating protocol.
        texts: what was said at each try, the last of which decided; empty for a likelihood protocol.
        accident: the answer was read off a text that gives none, or another: "A 35-year-old man ...", "I think ...".
        truncated: whether the prompt lost tokens on the left to fit the model's window.

    >>> result = Result.scored(Question("1", "Which?", dict(zip("ABC", "xyz")), "A"), {"A": -2.0, "B": -1.5, "C": -1.5})
    >>> result.predicted, result.tied, result.correct, result.margin
    ('B', True, False, -0.5)
    """

    id: str
    step: str
    seen: bool | None
    answer: str
    letters: tuple[str, ...]
    predicted: str | None
    scores: dict[str, float] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    accident: bool = False
    truncated: bool = False

    @classmethod
    def scored(cls, question: Question, scores: dict[str, float], truncated: bool = False) -> "Result":
        """By likelihood: the letter of the highest score; of several, the first as printed."""
        predicted = max(scores, key=scores.__getitem__)  # max keeps the first of equals
        return cls._of(question, predicted, scores=scores, truncated=truncated)

    @classmethod
    def said(
        cls,
        question: Question,
        predicted: str | None,
        texts: tuple[str, ...],
        *,
        accident: bool = False,
        truncated: bool = False,
    ) -> "Result":
        """By generation: the texts, and what was read off the last of them."""
        return cls._of(question, predicted, texts=texts, accident=accident, truncated=truncated)

    @classmethod
    def _of(cls, question: Question, predicted: str | None, **fields: object) -> "Result":
        letters = tuple(question.options)
        return cls(question.id, question.step, question.seen, question.answer, letters, predicted, **fields)  # type: ignore[arg-type]

    @property
    def correct(self) -> bool:
        """Whether the prediction is the answer."""
        return self.predicted == self.answer

    @property
    def tied(self) -> bool:
        """Whether another option scored exactly as high as the predicted one."""
        return self.predicted in self.scores and list(self.scores.values()).count(self.scores[self.predicted]) > 1

    @property
    def margin(self) -> float | None:
        """Score of the answer minus the best of the others: how far from changing the verdict. None without scores."""
        if not self.scores:
            return None
        return self.scores[self.answer] - max(s for letter, s in self.scores.items() if letter != self.answer)

    @property
    def probabilities(self) -> dict[str, float]:
        """The scores as shares that sum to 1: softmax over the options. Empty without scores.

        Only the sums (`text`, `letter`) are log-probabilities, whose shares are p(o | prompt, one of the options); of a
        mean or a difference they are a way to show the scores, and say nothing of how sure the model is.
        """
        if not self.scores:
            return {}
        best = max(self.scores.values())
        weights = {letter: math.exp(score - best) for letter, score in self.scores.items()}
        return {letter: weight / sum(weights.values()) for letter, weight in weights.items()}


def accuracy_of(results: Sequence[Result]) -> Accuracy:
    """Right answers among the results, with the interval and what guessing would give."""
    return Accuracy.of([result.correct for result in results], [len(result.letters) for result in results])
