"""The settings of a sitting: which protocol, and every number and oddity of it that a result depends on.

A setting that the chosen protocol does not look at must keep its default: a flag without effect would be a lie in the
report. `Sitting.used` says which those are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

from data import PromptTemplate
from data.exams import Question
from evaluation.answers import parse_answer
from evaluation.generation import GeneratedPaper, Judge
from evaluation.medalpaca import judge, response_marker
from evaluation.paper import Paper
from evaluation.prompts import LINE, OWN_WORDS, Method, Wording
from evaluation.scoring import LikelihoodPaper
from llama import Llama, Tokenizer
from llama.decoding.sampling import Sampling

Protocol = Literal["likelihood", "medalpaca", "generate"]
Accept = Literal["published", "sound"]

GREEDY = Sampling()
_SHARED = ("protocol", "instruction", "answer_prefix", "bos", "shots")
_USED: dict[Protocol, tuple[str, ...]] = {
    "likelihood": (*_SHARED, "method"),
    "generate": (*_SHARED, "max_new_tokens", "stop"),
    "medalpaca": (
        *(*_SHARED, "max_new_tokens", "stop", "seed"),
        *("accept", "tries", "temperature", "top_k", "top_p"),
    ),
}


@dataclass(frozen=True)
class Sitting:
    """How an exam is sat. The defaults of the protocol medalpaca are its published numbers."""

    protocol: Protocol = "likelihood"
    """How an answer is got from the model; explained above the flags."""
    method: Method = "text_per_token"
    """likelihood: what is compared; explained above the flags."""
    instruction: str | None = None
    """By default the protocol's own; "" asks the bare question, as the template context_question wants."""
    answer_prefix: str | None = None
    """Begins the answer; by default "The Answer to the question is:" for letters and medalpaca, else nothing."""
    bos: bool = True
    """Begin the prompt with begin-of-text. MedAlpaca did, but trained without."""
    shots: int = 0
    """Answered questions shown first; whole ones are dropped where the window is too small."""
    seed: int = 42
    """Which shots are drawn, and what medalpaca samples."""
    accept: Accept = "published"
    """medalpaca: take an answer by its pattern, flaws included, or by the sound parser of generate."""
    tries: int = 5
    """medalpaca: how often a question is asked until an answer is accepted."""
    temperature: float = 0.4
    """medalpaca: of the sampling; 0 is greedy, with one try."""
    top_k: int | None = 50
    """medalpaca: sample from so many tokens at most."""
    top_p: float | None = 0.9
    """medalpaca: sample from the most probable tokens that have this much of the mass."""
    max_new_tokens: int = 128
    """medalpaca, generate: the most tokens of an answer."""
    stop: bool = True
    """medalpaca, generate: stop where the model ends its answer; MedAlpaca's program let it run on."""

    def __post_init__(self) -> None:
        """Raises ValueError for a number out of range, or a setting without effect."""
        for name, least in (("shots", 0), ("tries", 1), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{_flag(name)} {getattr(self, name)} must be at least {least}")
        Sampling(self.temperature, self.top_k, self.top_p)
        for field in fields(self):
            if field.name not in self.used and getattr(self, field.name) != field.default:
                users = " or ".join(protocol for protocol, names in _USED.items() if field.name in names)
                raise ValueError(
                    f"{_flag(field.name)} has no effect with --protocol {self.protocol}: leave it out, or take "
                    f"--protocol {users}{' or --shots' if field.name == 'seed' else ''}"
                )

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the settings that the protocol looks at."""
        return _USED[self.protocol] + (("seed",) if self.shots and self.protocol != "medalpaca" else ())

    @property
    def settings(self) -> dict[str, Any]:
        """Those settings."""
        return {name: getattr(self, name) for name in self.used}

    @property
    def title(self) -> str:
        """The protocol in a word or two, for a table's title."""
        parts: list[str] = [self.method if self.protocol == "likelihood" else self.protocol]
        parts += [f"{self.shots} shots"] if self.shots else []
        return ", ".join(parts)

    @property
    def wording(self) -> Wording:
        """The words around a question."""
        if self.protocol == "likelihood":
            return Wording.of(self.method, self.instruction, self.answer_prefix)
        return (LINE if self.protocol == "medalpaca" else OWN_WORDS).but(self.instruction, self.answer_prefix)

    def prepare(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
        template: PromptTemplate,
        *,
        shots: Sequence[list[Question]] | None = None,
        batch_size: int = 16,
    ) -> Paper:
        """The exam, ready for `evaluation.sit`.

        Args:
            shots: for each question those to be shown before it, from `draw_shots`.

        Raises:
            ValueError: a question does not fit the window, or the tokenizer is another model's.
        """
        common: dict[str, Any] = {"wording": self.wording, "bos": self.bos, "shots": shots, "batch_size": batch_size}
        if self.protocol == "likelihood":
            return LikelihoodPaper(model, tokenizer, questions, template, method=self.method, **common)
        sampling = GREEDY
        if self.protocol == "medalpaca":
            sampling = Sampling(self.temperature, self.top_k, self.top_p)
        return GeneratedPaper(
            model,
            tokenizer,
            questions,
            template,
            judge=self._judge(template),
            sampling=sampling,
            tries=self.tries,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            **common,
        )

    def _judge(self, template: PromptTemplate) -> Judge:
        if self.protocol == "generate" or self.accept == "sound":
            return lambda question, text, _: (parse_answer(text, question.options), False)
        return partial(judge, marker=response_marker(template, self.wording.answer_prefix))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
