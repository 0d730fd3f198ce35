"""Several turns as one prompt: what was asked and answered so far, then the new question.

    opening · turn₁ · answer₁ · blank line · turn₂ · answer₂ · … · blank line · turnₙ

The published models were tuned on single turns, and their templates have no form for more. This form is ours, made of
whatever template there is: the paragraph that introduces its first placeholder ("### Instruction:", "Context: ") begins
a turn, and what stands before that paragraph ("Below is an instruction ...") is the opening. The opening is written
once, as the first turn has it. A turn is complete with its input, so that the oldest turns can be dropped without
taking anything from the later ones. Without earlier turns, the prompt is the one that the models were tuned with.

All of it is encoded as one string, for texts do not concatenate (see `llama.tokenizer`). Each prompt of a conversation
begins with the ids of the one before, as long as no turn is dropped and the answer's first characters do not merge with
the prompt's last (`:-` is one piece of LLaMA's tokenizer, which matters to a template that ends at the colon).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from data import PromptTemplate, Record, TokenEncoder

BLANK_LINE = "\n\n"


@dataclass(frozen=True)
class Conversation:
    """How turns become a prompt. It holds none of them: the caller keeps the history.

    Attributes:
        template: of a single turn.
        window: the model's, in tokens.
        opening: stands in place of the template's own; None keeps that.
    """

    template: PromptTemplate
    tokenizer: TokenEncoder
    window: int
    opening: str | None = None

    def prompt_ids(self, turns: Sequence[Record], question: Record, *, room: int) -> tuple[list[int], int]:
        """The ids that the answer is to continue, BOS first, and how many of the oldest turns had to be left out.

        A question that does not fit alone is returned all the same: decoding refuses it, and says by how much.

        Args:
            turns: earlier questions with their answers as `output`, the oldest first.
            room: tokens to leave for the answer; no more than half the window is.

        Raises:
            ValueError: a text that the tokenizer cannot encode.
        """
        room = min(room, self.window // 2)
        ids: list[int] = []
        for dropped in range(len(turns) + 1):
            # A space at the end is left to the answer: see `recipe.prompt_ids`.
            ids = self.tokenizer.encode(self.text(turns[dropped:], question).rstrip(" "), bos=True)
            if len(ids) + room <= self.window:
                break
        return ids, dropped

    def text(self, turns: Sequence[Record], question: Record) -> str:
        """The prompt as text.

        >>> asked = Conversation(PromptTemplate.named("context_question"), tokenizer=None, window=0)
        >>> asked.text([Record("What is gout?", "", "A disease.")], Record("Does it hurt?", "", ""))
        'Question: What is gout?\\n\\nAnswer: A disease.\\n\\nQuestion: Does it hurt?\\n\\nAnswer: '
        """
        opening = self.opening_of(turns[0] if turns else question)
        asked = [self._turn(turn) + turn.output.strip() for turn in turns] + [self._turn(question)]
        return (opening + BLANK_LINE if opening else "") + BLANK_LINE.join(asked)

    def opening_of(self, first: Record) -> str:
        """What a conversation that begins with this turn opens with, without the blank line after it."""
        return split_at_turn(form_of(self.template, first))[0].strip() if self.opening is None else self.opening

    def _turn(self, record: Record) -> str:
        """One question without the opening, up to where its answer begins."""
        opening, _ = split_at_turn(form_of(self.template, record))
        return self.template.render(record.instruction, record.input)[len(opening) :]


def as_question(text: str, *, instruction: str = "", input: str = "") -> Record:
    """What was typed, in its slot: the input if there is an instruction, else the instruction."""
    return Record(instruction, text, "") if instruction else Record(text, input, "")


STOP = ("### Instruction:",)
"""What ends an answer unless told otherwise: the mark that most tuned models were taught for a question."""


def ends(template: PromptTemplate, stop: Sequence[str]) -> tuple[str, ...]:
    """Texts that end an answer: those asked for, and the beginning of the template's next question."""
    return (*stop, *turn_marks(template))


def turn_marks(template: PromptTemplate) -> tuple[str, ...]:
    """Texts that begin a further turn, which a model not tuned to stop goes on to invent: they end an answer.

    >>> turn_marks(PromptTemplate.named("alpaca")), turn_marks(PromptTemplate.named("context_question"))
    (('\\n### Instruction:',), ('\\nContext:', '\\nQuestion:'))
    """
    starts = [split_at_turn(form)[1].strip() for form in (template.prompt_input, template.prompt_no_input)]
    return tuple(dict.fromkeys("\n" + start for start in starts if start))


def form_of(template: PromptTemplate, record: Record) -> str:
    """The template's text that `render` fills for this record."""
    return template.prompt_input if record.input else template.prompt_no_input


def split_at_turn(form: str) -> tuple[str, str]:
    """What stands before the first placeholder, as (opening, beginning of the turn).

    >>> split_at_turn("Be brief.\\n\\nQ: {instruction}\\nA:")
    ('Be brief.\\n\\n', 'Q: ')
    """
    before, _, _ = form.format(instruction="\0", input="\0").partition("\0")
    opening, blank, _ = before.rstrip().rpartition(BLANK_LINE)
    border = len(opening + blank)
    return before[:border], before[border:]
