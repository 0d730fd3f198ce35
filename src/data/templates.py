"""Prompt templates: the exact strings around instruction and input that the published models were tuned with.

    alpaca            Alpaca-LoRA's: ends "### Response:\\n"
    alpaca_legacy     Stanford's (and lit-llama's): ends at the colon, the answer follows without a line break
    alpaca_short      Alpaca-LoRA's, without the opening sentence
    medalpaca         always the with-input form, so an empty input leaves an empty "### Input:" section
    context_question  MedAlpaca's model card: the record's input is the context, its instruction the question

A model asked with another template than it was tuned with answers worse, and nothing warns of it: the template is
therefore stored with every adapter (`to_dict`) and read back from there (`from_dict`).

A user's own template is a file in Alpaca-LoRA's form: {"description", "prompt_input", "prompt_no_input",
"response_split"}, with {instruction} and {input} as placeholders and {{ }} for literal braces.
"""

import string
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from files import shown
from files.fields import Place, kind, listed, text_field
from files.rows import read_json

NOWHERE = Place(None, "prompt template")
LARGEST_FILE = 2**20  # bytes; a prompt longer than any window is no prompt

_TASK = "### Instruction:\n{instruction}\n\n"
_INPUT = "### Input:\n{input}\n\n"
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n" + _TASK + _INPUT + "### Response:"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n" + _TASK + "### Response:"
)


@dataclass(frozen=True)
class PromptTemplate:
    """The text before an answer, with and without an input.

    Attributes:
        name: what reports call it.
        prompt_input: used when there is an input; holds {instruction} and {input}.
        prompt_no_input: used when the input is empty; holds {instruction}.
        response_split: the marker before the answer, where Alpaca-LoRA's programs cut their output; kept for them.
        description: one sentence for people.
    """

    name: str
    prompt_input: str
    prompt_no_input: str
    response_split: str = "### Response:"
    description: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError, which `from_file` puts its file's name to."""
        for field, allowed in (("prompt_input", {"instruction", "input"}), ("prompt_no_input", {"instruction"})):
            self._check_placeholders(field, allowed)
            if not self.response_split or self.response_split not in getattr(self, field):
                raise ValueError(
                    f"template {shown(self.name)}: response_split {shown(self.response_split)} does not occur in "
                    f"{field}; it must be the marker that stands before the answer"
                )

    def _check_placeholders(self, field: str, needed: set[str]) -> None:
        where = f"template {shown(self.name)}, {field}"
        try:
            pieces = list(string.Formatter().parse(getattr(self, field)))
        except ValueError as error:
            raise ValueError(f"{where}: {error}; write {{{{ and }}}} for literal braces") from error
        named = {name for _, name, _, _ in pieces if name is not None}
        plain = all(not spec and not conversion for _, _, spec, conversion in pieces)
        # medalpaca's text without an input keeps the empty {input}.
        if not plain or not named <= {"instruction", "input"}:
            raise ValueError(
                f"{where}: placeholders [{listed(sorted(named))}]; the known ones are {{instruction}} and {{input}}, "
                "without a format; write {{ and }} for literal braces"
            )
        if missing := needed - named:
            raise ValueError(f"{where}: lacks the placeholder {{{min(missing)}}}")

    def render(self, instruction: str, input: str = "") -> str:
        """The prompt, up to where the answer begins.

        Only the template's own placeholders are filled: braces in a record's text are text.

        >>> PromptTemplate.named("context_question").render("What does {input} mean?", "A shell manual.")
        'Context: A shell manual.\\n\\nQuestion: What does {input} mean?\\n\\nAnswer: '
        """
        values = {"instruction": instruction, "input": input, None: ""}
        template = self.prompt_input if input else self.prompt_no_input
        return "".join(literal + values[name] for literal, name, _, _ in string.Formatter().parse(template))

    def to_dict(self) -> dict[str, str]:
        """A JSON object in Alpaca-LoRA's form, and the name; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any], *, place: Place = NOWHERE, name: str = "custom") -> "PromptTemplate":
        """Build from a JSON object; `name` is used when it holds none. Errors name `place` and the key."""
        if not isinstance(row, dict):
            raise place.unsuitable(f"the root is {kind(row)}, expected an object")
        known = [field.name for field in fields(cls)]
        optional = {"name": name, "description": ""}
        values = {key: text_field(row, key, place, optional.get(key)) for key in known}
        try:
            return cls(**values)
        except ValueError as error:
            raise place.unsuitable(str(error)) from None

    @classmethod
    def from_file(cls, path: str | Path) -> "PromptTemplate":
        """Read a user's JSON file.

        Raises:
            FileError: it is not a template; file, key and remedy are named.
            OSError: it cannot be read.
        """
        path = Path(path)
        row = read_json(path, remedy='write one object {"prompt_input": ..., ...}', limit=LARGEST_FILE)
        return cls.from_dict(row, place=Place(path), name=path.stem)

    @classmethod
    def named(cls, name: str) -> "PromptTemplate":
        """One of the published templates."""
        if name not in TEMPLATES:
            raise ValueError(
                f"unknown template {name!r}; known: {', '.join(TEMPLATES)}, or a JSON file through from_file"
            )
        return TEMPLATES[name]

    @classmethod
    def find(cls, name_or_path: str | Path) -> "PromptTemplate":
        """A published template by name, or a user's by the path of its file: what a command line accepts."""
        if str(name_or_path) in TEMPLATES:
            return TEMPLATES[str(name_or_path)]
        if Path(name_or_path).is_file():
            return cls.from_file(name_or_path)
        raise ValueError(f"{str(name_or_path)!r} is no file and none of the templates {', '.join(TEMPLATES)}")


TEMPLATES: dict[str, PromptTemplate] = {
    template.name: template
    for template in (
        PromptTemplate(
            "alpaca",
            _WITH_INPUT + "\n",
            _WITHOUT_INPUT + "\n",
            description="Alpaca-LoRA's: the answer begins on its own line.",
        ),
        PromptTemplate(
            "alpaca_legacy",
            _WITH_INPUT,
            _WITHOUT_INPUT,
            description="Stanford Alpaca's: the answer follows the colon directly.",
        ),
        PromptTemplate(
            "alpaca_short",
            _TASK + _INPUT + "### Response:\n",
            _TASK + "### Response:\n",
            description="Alpaca-LoRA's short form: no opening sentence.",
        ),
        PromptTemplate(
            "medalpaca",
            _WITH_INPUT + "\n",
            _WITH_INPUT + "\n",
            description="MedAlpaca's: the input section is there even when it is empty.",
        ),
        PromptTemplate(
            "context_question",
            "Context: {input}\n\nQuestion: {instruction}\n\nAnswer: ",
            # The model card shows no prompt without a context; leaving the line out is ours.
            "Question: {instruction}\n\nAnswer: ",
            response_split="Answer:",
            description="MedAlpaca's model card: a question about a context.",
        ),
    )
}
