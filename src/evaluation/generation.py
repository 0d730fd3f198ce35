"""The generating protocols: the model answers in words, and an answer is read off them.

    generate     greedy decoding, one try, read by `answers.parse_answer`
    medalpaca    sampling, up to five tries, read as MedAlpaca did: see medalpaca.py

Randomness: every try of every question has a generator of its own, from (seed, question id, number of the try). Neither
the batch, nor the order, nor an interruption changes what is drawn. What may change is the last bit of a logit, whose
sums depend on the batch's shape (under an int8 base more than the last bit); where two tokens are that close, another
can be taken.

A result is given as soon as its question's last try is there, so an interruption loses no question that is answered,
only the tries of those that are not. The price: the others of its group are then decoded in other company, and an exam
that goes on repeats an undisturbed one up to that rounding, not to the bit.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import torch

from data import PromptTemplate
from data.exams import Question
from evaluation.paper import check_vocabulary
from evaluation.prompts import Wording, pose
from evaluation.result import Result
from evaluation.shots import fit_shots, shots_note
from llama import Llama, Tokenizer
from llama.decoding import generate_many
from llama.decoding.sampling import Sampling

SHORTEST = 16
"""Tokens left to an answer before its prompt is cut: enough for a letter and the words before it."""
BATCHES = 4
"""Batches asked in turn before their questions are tried again: few tries are left at the end of each round, and
decoding them costs a whole step for a batch that is almost empty."""

Judge = Callable[[Question, str, bool], tuple[str | None, bool]]
"""(question, text, whether the model ended it) -> (letter or None, whether it was read by accident)."""


class GeneratedPaper:
    """An exam to be answered in words; see `evaluation.paper.Paper`.

    Args:
        judge: reads an answer off a text.
        sampling: how tokens are chosen.
        tries: how often a question is asked until an answer is read; greedily once, as it would say the same again.
        max_new_tokens: of an answer; fewer where the prompt leaves fewer in the window.
        stop: end an answer where the model ends it. Otherwise its text goes on behind "</s>".
        shots: for each question those to be shown before it; none by default.

    Raises:
        ValueError: the window has no room for a prompt, or a token is outside the vocabulary.
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
        template: PromptTemplate,
        *,
        wording: Wording,
        judge: Judge,
        sampling: Sampling,
        tries: int = 1,
        seed: int = 0,
        max_new_tokens: int = 128,
        bos: bool = True,
        stop: bool = True,
        shots: Sequence[list[Question]] | None = None,
        batch_size: int = 16,
    ) -> None:
        self.model, self.questions, self.chunk = model, questions, BATCHES * batch_size
        cut = 0
        self._tokenizer, self._judge, self._sampling, self._seed = tokenizer, judge, sampling, seed
        self._tries = 1 if sampling.temperature == 0 else tries
        self._stop, self._batch_size = stop, batch_size
        window = model.config.max_seq_len
        room = window - min(max_new_tokens, SHORTEST)
        if room <= bos:
            raise ValueError(
                f"the model's window of {window} tokens has no room for a question before {window - room} new ones; "
                "lower --max-new-tokens"
            )
        self._prompts: list[list[int]] = []
        self._cut: list[bool] = []
        for i, question in enumerate(questions):

            def encoded(text: str) -> list[int]:
                return tokenizer.encode(text.rstrip(" "), bos=bos)  # see recipe.prompt_ids: the answer brings the space

            prompt, _ = pose(question, template, wording)
            shown = [] if shots is None else shots[i]
            kept, prompt = fit_shots(
                prompt, shown, template, wording, lambda text: len(encoded(text)) + max_new_tokens <= window
            )
            cut += len(shown) - len(kept)
            token_ids = encoded(prompt)
            check_vocabulary(model, max(token_ids))
            surplus = max(0, len(token_ids) - room)
            self._cut.append(surplus > 0)
            self._prompts.append(token_ids[:bos] + token_ids[bos + surplus :])
        self._limits = [min(max_new_tokens, window - len(prompt)) for prompt in self._prompts]
        self.notes = shots_note(cut, shots)
        if short := [limit for limit in self._limits if limit < max_new_tokens]:
            self.notes.append(
                f"{len(short)} of {len(questions)} prompts leave fewer than {max_new_tokens} new tokens in the window, "
                f"at least {min(short)}"
            )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(prompt) for prompt in self._prompts]

    def answer(self, rows: Sequence[int]) -> Iterator[list[Result]]:
        """Ask the questions of these numbers, again and again those without an answer; each result by itself."""
        texts: dict[int, list[str]] = {i: [] for i in rows}
        for attempt in range(self._tries):
            waiting = list(texts)
            for i, token_ids in self._spoken(waiting, attempt):
                question, said = self.questions[i], self._text(token_ids)
                texts[i].append(said.strip())
                ended = self._stop and len(token_ids) < self._limits[i]
                letter, accident = self._judge(question, said, ended)
                if letter is not None or attempt == self._tries - 1:
                    tried = tuple(texts.pop(i))
                    yield [Result.said(question, letter, tried, accident=accident, truncated=self._cut[i])]

    def _spoken(self, rows: Sequence[int], attempt: int) -> Iterator[tuple[int, list[int]]]:
        """(number of a question, token ids of its answer), as they are complete."""
        if not rows:
            return
        generators = [generator_of(self._seed, self.questions[i].id, attempt) for i in rows]
        for place, token_ids in generate_many(
            self.model,
            [self._prompts[i] for i in rows],
            batch_size=self._batch_size,
            max_new_tokens=[self._limits[i] for i in rows],
            temperature=self._sampling.temperature,
            top_k=self._sampling.top_k,
            top_p=self._sampling.top_p,
            stop_ids={self._tokenizer.eos_id} if self._stop else (),
            generators=generators,
        ):
            yield rows[place], token_ids

    def _text(self, token_ids: Sequence[int]) -> str:
        """What was said; where end-of-text stands within, as text."""
        pieces: list[list[int]] = [[]]
        for token_id in token_ids:
            if token_id == self._tokenizer.eos_id:
                pieces.append([])
            else:
                pieces[-1].append(token_id)
        return "</s>".join(self._tokenizer.decode(piece, continues=True) for piece in pieces)


def generator_of(seed: int, question: str, attempt: int) -> torch.Generator:
    """The randomness of one try, on the CPU, so that every device draws the same."""
    digest = hashlib.sha256(f"{seed} {attempt} {question}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
