"""The protocol `likelihood`: the answer is the option with the highest score.

    o* = argmax_o score(o)

    text, letter         log p(o | prompt), of an option's text or its letter
    text_per_token       log p(o | prompt) / tokens of o
    text_per_byte        log p(o | prompt) / UTF-8 bytes of o
    text_calibrated,
    letter_calibrated    log p(o | prompt) − log p(o | prompt without the question)

A sum alone favours short options, since every further token can only lower it; and any log p(o | ·) favours what is
probable anyway, whatever was asked. What `prompts.pose_nothing` puts in the question's place shows that preference:

text_calibrated is domain-conditional pointwise mutual information (Holtzman et al., arXiv 2104.08315, section 3.3),
log p(o | x) − log p(o | domain). Their domain premise is written by hand for each task; ours is the template with the
instruction and without an input.

letter_calibrated is contextual calibration (Zhao et al., arXiv 2102.09690, section 5): softmax(W p) with
W = diag(p_cf)⁻¹, the letters' probabilities p divided by those under a question without content, which does not change
the order of log p − log p_cf. Of their three contents ("N/A", "[MASK]", "") ours is the first, in the place of the
question and of every option. The letters' probabilities are not made to sum to 1 before: it would shift all scores of
a question by one number.

Shots, where there are any, stand before both prompts.

Under an int8 base scores move slightly with the batch's composition: outlier features are decided per batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from torch import nn

from data import PromptTemplate, TokenEncoder
from data.exams import Question
from evaluation.likelihood import Choices, encode_choices, log_likelihoods, log_likelihoods_reference
from evaluation.paper import check_vocabulary, sit
from evaluation.prompts import Method, Wording, pose, pose_nothing
from evaluation.result import Result
from evaluation.shots import fit_shots, shots_note
from llama import Llama


class LikelihoodPaper:
    """An exam to be scored; see `evaluation.paper.Paper`.

    Args:
        model: (B, T) token ids -> (B, T, V) logits. A `Llama` reads each prompt once; any other model, once per option.
        tokenizer: ids of the model's vocabulary.
        template: the prompt the model was tuned with.
        shots: for each question those to be shown before it; none by default.
        max_length: window in tokens; a longer prompt is cut on the left. By default a Llama's own, else unlimited.

    Raises:
        ValueError: an option too long for the window, or a token outside the vocabulary.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenEncoder,
        questions: Sequence[Question],
        template: PromptTemplate,
        *,
        method: Method = "text_per_token",
        wording: Wording | None = None,
        bos: bool = True,
        shots: Sequence[list[Question]] | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
    ) -> None:
        if max_length is None and isinstance(model, Llama):
            max_length = model.config.max_seq_len
        self.model, self.questions, self.method, self.chunk = model, questions, method, batch_size
        wording = Wording.of(method) if wording is None else wording
        cut = 0
        self._choices: list[Choices] = []
        self._without: list[Choices] = []  # the same options after no question
        # Only a Llama has a cache to read each prompt into.
        self._scorer: Callable[..., list[list[float]]] = (
            log_likelihoods if isinstance(model, Llama) else log_likelihoods_reference
        )
        for i, question in enumerate(questions):
            prompt, continuations = pose(question, template, wording)
            options = list(continuations.values())

            def encoded(prompt: str, options: list[str] = options, name: str = question.id) -> Choices:
                return encode_choices(tokenizer, prompt, options, max_length, name, bos=bos)

            shown = [] if shots is None else shots[i]
            kept, prompt = fit_shots(prompt, shown, template, wording, lambda text: not encoded(text).truncated)
            cut += len(shown) - len(kept)
            self._choices.append(encoded(prompt))
            if method.endswith("calibrated"):
                nothing = pose_nothing(question, template, wording)
                self._without.append(encoded(fit_shots(nothing, kept, template, wording, lambda _: True)[1]))
        self.notes = shots_note(cut, shots)
        for choices in (*self._choices, *self._without):
            check_vocabulary(model, max(max(ids) for ids in (choices.prompt, *choices.options)))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(choices.prompt) for choices in self._choices]

    def answer(self, rows: Sequence[int]) -> Iterator[list[Result]]:
        """Score the questions of these numbers, all together.

        Raises:
            ValueError: a score that is not finite.
        """
        sums = self._scorer(self.model, [self._choices[i] for i in rows])
        if self._without:
            anyway = self._scorer(self.model, [self._without[i] for i in rows])
            sums = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(sums, anyway, strict=True)]
        yield [self._result(i, row) for i, row in zip(rows, sums, strict=True)]

    def _result(self, i: int, sums: list[float]) -> Result:
        question, choices = self.questions[i], self._choices[i]
        if not all(map(math.isfinite, sums)):
            raise ValueError(
                f"question {question.id}: the model's log-likelihoods are {sums}; its weights hold NaN or overflow "
                "their dtype: try --dtype float32, and check the adapter"
            )
        lengths = [1] * len(sums)
        if self.method == "text_per_token":
            lengths = [len(option) for option in choices.options]
        elif self.method == "text_per_byte":
            lengths = [len(option.encode()) for option in question.options.values()]
        scores = {letter: total / n for letter, total, n in zip(question.options, sums, lengths, strict=True)}
        return Result.scored(question, scores, choices.truncated)


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
    """Score every option of every question: the protocol `likelihood` in one call, without shots.

    Args:
        instruction: replaces the method's own; see `Wording`.
        batch_size: questions per forward pass.
        progress: show a bar on stderr.
        model, tokenizer, template, method, max_length: see `LikelihoodPaper`.

    Returns:
        Results in the order of the questions.

    Raises:
        ValueError: no questions, an option too long for the window, a token outside the vocabulary, or a score that is
            not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be at least 1")
    paper = LikelihoodPaper(
        model,
        tokenizer,
        questions,
        template,
        method=method,
        wording=Wording.of(method, instruction),
        batch_size=batch_size,
        max_length=max_length,
    )
    return sit(paper, progress=progress)
