"""How a question is put to a language model: the prompt, and for each option the text that would answer it.

Three forms of answer; but for the first, the options stand in the prompt as lines "A: ...":

    text    an option's own words; the prompt holds the question alone, as in Medical Meadow's rows
    letter  an option's letter
    line    an option as it is listed, "B: Pancreas": what a model is expected to say, and what shots show it

With options come the instruction and the beginning of the answer that MedAlpaca's evaluation uses (eval_usmle.py in its
repository): "The Answer to the question is:".

An answer without a prefix joins the prompt as it does in training, with nothing between. After a prefix comes a space.
"""

from dataclasses import dataclass, replace
from typing import Literal

from data import PromptTemplate
from data.exams import Question

Method = Literal["text_per_token", "text_per_byte", "text", "text_calibrated", "letter", "letter_calibrated"]
Form = Literal["text", "letter", "line"]

BETWEEN_SHOTS = "\n\n"
CONTENT_FREE = "N/A"
"""A question without content; the first of the three of arXiv 2102.09690, section 5."""


@dataclass(frozen=True)
class Wording:
    """The words around a question.

    Attributes:
        instruction: for the template's instruction; the question is then its input. If empty, the question itself is
            the instruction and its context the input, for which the template context_question was made.
        form: of the answer, see above.
        answer_prefix: the beginning of the answer, given to the model.
    """

    instruction: str
    form: Form = "text"
    answer_prefix: str = ""

    @property
    def lists_options(self) -> bool:
        """Whether the prompt shows the options."""
        return self.form != "text"

    @classmethod
    def of(cls, method: Method, instruction: str | None = None, answer_prefix: str | None = None) -> "Wording":
        """The wording of a scoring method, with its own words replaced by those that are not None."""
        return (LETTER if method.startswith("letter") else TEXT).but(instruction, answer_prefix)

    def but(self, instruction: str | None, answer_prefix: str | None) -> "Wording":
        """The same with other words, where they are not None."""
        return replace(
            self,
            instruction=self.instruction if instruction is None else instruction,
            answer_prefix=self.answer_prefix if answer_prefix is None else answer_prefix,
        )


LETTER = Wording("Answer this multiple choice question.", "letter", "The Answer to the question is:")
"""MedAlpaca's words, one letter to compare."""
LINE = replace(LETTER, form="line")
"""MedAlpaca's protocol."""
OWN_WORDS = replace(LINE, answer_prefix="")
"""The same question, the answer from its first word on the model's own."""
TEXT = Wording("Answer this question truthfully")
"""The instruction of most rows of Medical Meadow."""


def pose(question: Question, template: PromptTemplate, wording: Wording) -> tuple[str, dict[str, str]]:
    """The prompt, and each option's continuation of it.

    >>> question = Question("1", "Which organ makes insulin?", {"A": "Liver", "B": "Pancreas"}, "B")
    >>> prompt, continuations = pose(question, PromptTemplate.named("alpaca_short"), LETTER)
    >>> print(prompt)
    ### Instruction:
    Answer this multiple choice question.
    <BLANKLINE>
    ### Input:
    Which organ makes insulin?
    A: Liver
    B: Pancreas
    <BLANKLINE>
    ### Response:
    The Answer to the question is:
    >>> continuations
    {'A': ' A', 'B': ' B'}
    """
    prompt = _prompt(question.text, question.options, question.context, template, wording)
    answers = {
        "text": question.options,
        "letter": {letter: letter for letter in question.options},
        "line": _lines(question.options),
    }[wording.form]
    space = " " if wording.answer_prefix else ""
    return prompt, {letter: space + answer for letter, answer in answers.items()}


def pose_nothing(question: Question, template: PromptTemplate, wording: Wording) -> str:
    """The prompt without its question, by which an option's own probability is told from the question's doing.

    Where the options are listed: the question "N/A", under the same letters "N/A" each. Otherwise the instruction
    without an input, as the template puts it.
    """
    if wording.lists_options:
        return _prompt(CONTENT_FREE, dict.fromkeys(question.options, CONTENT_FREE), "", template, wording)
    return template.render(wording.instruction) + wording.answer_prefix


def with_shots(prompt: str, shots: list[Question], template: PromptTemplate, wording: Wording) -> str:
    """The prompt after answered questions, each put and answered in the same form, a blank line between."""
    answered = []
    for shot in shots:
        asked, continuations = pose(shot, template, wording)
        answered.append(asked + continuations[shot.answer])
    return BETWEEN_SHOTS.join([*answered, prompt])


def _prompt(text: str, options: dict[str, str], context: str, template: PromptTemplate, wording: Wording) -> str:
    asked = "\n".join([text, *_lines(options).values()]) if wording.lists_options else text
    if wording.instruction:
        read_first = f"{context}\n\n" if context else ""
        return template.render(wording.instruction, read_first + asked) + wording.answer_prefix
    return template.render(asked, context) + wording.answer_prefix


def _lines(options: dict[str, str]) -> dict[str, str]:
    return {letter: f"{letter}: {option}" for letter, option in options.items()}
