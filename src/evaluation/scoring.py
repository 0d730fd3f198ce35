"""Multiple choice by likelihood: the answer is the option with the highest score.

    score(o) = 1/N(o) · log p(o | prompt)                o* = argmax_o score(o)

N is 1 for the methods `letter` and `text`, the number of tokens for `text_per_token`, and of UTF-8 bytes for
`text_per_byte`. A sum alone favours short options, since every further token can only lower it.

Under an int8 base scores move slightly with the batch's composition: outlier features are decided per batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from data import PromptTemplate, TokenEncoder
from data.exams import Question
from evaluation.likelihood import Choices, encode_choices, log_likelihoods, log_likelihoods_reference
from evaluation.prompts import Method, Wording, pose
from llama import Llama


@dataclass(frozen=True)
class Result:
    """What a model made of one question.

    Attributes:
        id, step, seen, answer: the question's.
        scores: option letter -> score as above; natural logarithm.
        truncated: see `Choices`.

    >>> result = Result("1", "step1", None, "A", {"A": -2.0, "B": -1.5, "C": -1.5})
    >>> result.predicted, result.tied, result.correct, result.margin
    ('B', True, False, -0.5)
    """

    id: str
    step: str
    seen: bool | None
    answer: str
    scores: dict[str, float]
    truncated: bool = False

    @property
    def predicted(self) -> str:
        """Letter of the highest score; of several, the first as printed."""
        return max(self.scores, key=self.scores.__getitem__)  # max keeps the first of equals

    @property
    def tied(self) -> bool:
        """Whether another option scored exactly as high as the predicted one."""
        return list(self.scores.values()).count(self.scores[self.predicted]) > 1

    @property
    def correct(self) -> bool:
        """Whether the prediction is the answer."""
        return self.predicted == self.answer

    @property
    def margin(self) -> float:
        """Score of the answer minus the best of the others: how far from changing the verdict."""
        return self.scores[self.answer] - max(s for letter, s in self.scores.items() if letter != self.answer)

    @property
    def probabilities(self) -> dict[str, float]:
        """The scores as shares that sum to 1: softmax over the options."""
        best = self.scores[self.predicted]
        weights = {letter: math.exp(score - best) for letter, score in self.scores.items()}
        return {letter: weight / sum(weights.values()) for letter, weight in weights.items()}


def score_questions(
    model: nn.Module,
    tokenizer: TokenEncoder,
    questions: Sequence[Question],
    template: PromptTemplate,
    *,
    method: Method = "text_per_token",
    instruction: str | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    progress: bool = False,
) -> list[Result]:
    """Score every option of every question.

    Args:
        model: (B, T) token ids -> (B, T, V) logits. A `Llama` reads each prompt once; any other model, once per option.
        tokenizer: ids of the model's vocabulary.
        template: the prompt the model was tuned with.
        method: what is scored and how it is normalised, see above.
        instruction: replaces the method's own; see `Wording`.
        batch_size: questions per forward pass.
        max_length: window in tokens; a longer prompt is cut on the left. By default a Llama's own, else unlimited.
        progress: show a bar on stderr.

    Returns:
        Results in the order of the questions.

    Raises:
        ValueError: no questions, an option too long for the window, a token outside the vocabulary, or a score that is
            not finite.
    """
    if not questions:
        raise ValueError("there are no questions to score")
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    if max_length is None and isinstance(model, Llama):
        max_length = model.config.max_seq_len
    wording = Wording.of(method, instruction)
    choices = []
    for question in questions:
        prompt, continuations = pose(question, template, wording)
        choices.append(encode_choices(tokenizer, prompt, list(continuations.values()), max_length, question.id))
    _check_vocabulary(model, choices)

    # Only a Llama has a cache to read each prompt into.
    scorer: Callable[..., list[list[float]]] = (
        log_likelihoods if isinstance(model, Llama) else log_likelihoods_reference
    )
    # Longest first: what does not fit into memory fails at once, and neighbours need little padding.
    order = sorted(range(len(questions)), key=lambda i: -len(choices[i].prompt))
    results: dict[int, Result] = {}
    was_training = model.training
    model.eval()
    try:
        with _bar(progress) as bar:
            task = bar.add_task("questions", total=len(questions))
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                rows = [choices[i] for i in batch]
                for i, row in zip(batch, scorer(model, rows), strict=True):
                    results[i] = _result(questions[i], choices[i], row, method)
                bar.advance(task, len(batch))
    finally:
        model.train(was_training)
    return [results[i] for i in range(len(questions))]


def _check_vocabulary(model: nn.Module, choices: Sequence[Choices]) -> None:
    """A GPU would die of an id outside the embedding without a word about it."""
    if not isinstance(model, Llama):
        return
    largest = max(max(ids) for row in choices for ids in (row.prompt, *row.options))
    if largest >= model.config.vocab_size:
        raise ValueError(
            f"the tokenizer makes id {largest}, the model embeds {model.config.vocab_size}; use the model's own "
            "tokenizer"
        )


def _result(question: Question, choices: Choices, sums: list[float], method: Method) -> Result:
    if not all(map(math.isfinite, sums)):
        raise ValueError(
            f"question {question.id}: the model's log-likelihoods are {sums}; its weights hold NaN or overflow their "
            "dtype: try --dtype float32, and check the adapter"
        )
    lengths = {
        "letter": [1] * len(sums),
        "text": [1] * len(sums),
        "text_per_token": [len(option) for option in choices.options],
        "text_per_byte": [len(option.encode()) for option in question.options.values()],
    }[method]
    scores = {letter: total / length for letter, total, length in zip(question.options, sums, lengths, strict=True)}
    return Result(question.id, question.step, question.seen, question.answer, scores, choices.truncated)


def _bar(visible: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not visible)
