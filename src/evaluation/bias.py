"""Does a model choose a text, or a letter? What changes with the order of the options.

Every question is asked in each cyclic order of its options: in rotation k the text of option i stands under letter
(i + k) mod n. A model that reads chooses the same text in all n. Over the n rotations each text stands under each
letter once, so such a model chooses every letter equally often *whatever* the exam's key is like; what departs from
that is a taste for letters. A question of n options has n rotations; in an exam of mixed questions it is left out of
the later ones, which would repeat its first.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.exams import Question
from evaluation.result import Result, accuracy_of
from evaluation.statistics import Accuracy


def rotated(question: Question, k: int) -> Question:
    """The question with its options moved k places on under the same letters, the last ones to the front.

    >>> question = Question("1", "Which organ makes insulin?", {"A": "Liver", "B": "Pancreas", "C": "Skin"}, "B")
    >>> turned = rotated(question, 1)
    >>> turned.options, turned.answer
    ({'A': 'Skin', 'B': 'Liver', 'C': 'Pancreas'}, 'C')
    """
    letters, texts = list(question.options), list(question.options.values())
    n = len(letters)
    answer = letters[(letters.index(question.answer) + k) % n]
    return replace(question, options={letters[i]: texts[(i - k) % n] for i in range(n)}, answer=answer)


@dataclass(frozen=True)
class RotationBias:
    """What the order of the options changes.

    Attributes:
        accuracies: per rotation, over the questions that have it.
        n: questions.
        stable: questions with one and the same text chosen in all their rotations.
        stable_right: those of them whose text is the answer.
        chosen: letter -> how often it was predicted, over all rotations.
        fair: letter -> how often a model that chooses texts would have predicted it, over the same answers.
        unanswered: predictions of no letter, or of one that is no option, over all rotations.
    """

    accuracies: tuple[Accuracy, ...]
    n: int
    stable: int
    stable_right: int
    chosen: dict[str, int]
    fair: dict[str, float]
    unanswered: int

    @property
    def accuracy(self) -> float:
        """Share of right answers over all rotations, in which every answer stood under every letter once."""
        return sum(found.correct for found in self.accuracies) / sum(found.n for found in self.accuracies)

    @classmethod
    def of(cls, rotations: Sequence[Sequence[Result]]) -> "RotationBias":
        """From results of `rotated(question, k)`, those of rotation k at place k, the same questions in each.

        Raises:
            ValueError: no results, other questions in one of the rotations, or too few rotations for a question.
        """
        if not rotations or not rotations[0]:
            raise ValueError("no results: ask the questions in every rotation first")
        for k, results in enumerate(rotations):
            if [result.id for result in results] != [result.id for result in rotations[0]]:
                raise ValueError(f"rotation {k} is not about the questions of rotation 0; ask the same ones in each")
        chosen: Counter[str] = Counter()
        fair: dict[str, float] = {}
        stable = stable_right = unanswered = 0
        for tries in zip(*rotations, strict=True):
            letters = tries[0].letters
            n = len(letters)
            if len(rotations) < n:
                raise ValueError(
                    f"question {tries[0].id} has {n} options and needs as many rotations: {len(rotations)}"
                )
            texts = {_original(result, k) for k, result in enumerate(tries[:n])}
            stable += len(texts) == 1 and None not in texts
            stable_right += texts == {tries[0].answer}
            predicted = [result.predicted for result in tries[:n] if result.predicted in letters]
            chosen.update(letter for letter in predicted if letter)
            unanswered += n - len(predicted)
            for letter in letters:
                fair[letter] = fair.get(letter, 0.0) + len(predicted) / n
        n_rotations = max(len(result.letters) for result in rotations[0])
        asked = [
            [result for result in results if k < len(result.letters)]
            for k, results in enumerate(rotations[:n_rotations])
        ]
        return cls(
            accuracies=tuple(accuracy_of(results) for results in asked),
            n=len(rotations[0]),
            stable=stable,
            stable_right=stable_right,
            chosen={letter: chosen[letter] for letter in fair},
            fair=fair,
            unanswered=unanswered,
        )


def _original(result: Result, k: int) -> str | None:
    """The letter under which the text chosen in rotation k stands in rotation 0."""
    if result.predicted not in result.letters:
        return None
    return result.letters[(result.letters.index(result.predicted) - k) % len(result.letters)]
