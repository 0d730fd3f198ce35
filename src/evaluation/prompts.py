"""How a question is put to a language model: the prompt, and for each option the text that would answer it.

Two forms, told apart by what the model is asked to continue with:

    letter  the options stand in the prompt as lines "A: ..."; the answer is a letter. MedAlpaca's protocol
            (eval_usmle.py in its repository), which also begins the answer: "The Answer to the question is:".
    text    the prompt holds the question alone, as in Medical Meadow's rows; the answer is an option's own words.

An answer without a prefix joins the prompt as it does in training, with nothing between. After a prefix comes a space.
"""

from dataclasses import dataclass, replace
from typing import Literal

from data import PromptTemplate
from data.exams import Question

Method = Literal["text_per_token", "text_per_byte", "text", "letter"]


@dataclass(frozen=True)
class Wording:
    """The words around a question.

    Attributes:
        instruction: for the template's instruction; the question is then its input. If empty, the question itself is
            the instruction and its context the input, for which the template context_question was made.
        lists_options: whether the prompt shows the options and the answer is a letter.
        answer_prefix: the beginning of the answer, given to the model.
    """

    instruction: str
    lists_options: bool
    answer_prefix: str = ""

    @classmethod
    def of(cls, method: Method, instruction: str | None = None) -> "Wording":
        """The wording of a scoring method; `instruction` replaces its own unless None."""
        wording = LETTER if method == "letter" else TEXT
        return wording if instruction is None else replace(wording, instruction=instruction)


LETTER = Wording("Answer this multiple choice question.", True, "The Answer to the question is:")
"""As in MedAlpaca's evaluation."""
TEXT = Wording("Answer this question truthfully", False)
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
    asked = question.text
    if wording.lists_options:
        asked += "".join(f"\n{letter}: {option}" for letter, option in question.options.items())
    if wording.instruction:
        read_first = f"{question.context}\n\n" if question.context else ""
        prompt = template.render(wording.instruction, read_first + asked)
    else:
        prompt = template.render(asked, question.context)
    space = " " if wording.answer_prefix else ""
    answers = {letter: letter if wording.lists_options else option for letter, option in question.options.items()}
    return prompt + wording.answer_prefix, {letter: space + answer for letter, answer in answers.items()}
