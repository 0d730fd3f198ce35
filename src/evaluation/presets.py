"""The rows of MedAlpaca's Table 2 (arXiv 2304.08247): how each model is asked, what it scored, and what made it.

Published accuracies on the USMLE self-assessment without its questions with images, in the paper and in the README of
github.com/kbressem/medAlpaca. How they were made is `eval/eval_usmle.py` there, our protocol medalpaca. What that
program was told for each row (model, template, 8 bits or not), and how its answers were graded, is published nowhere.
So each row has a template for a reason that it states:

- MedAlpaca's rows and the plain LLaMAs get `medalpaca`, the template of its own example and the only one left in the
  repository beside the program. A LLaMA that was never tuned has no template of its own.
- The others get what they were tuned with. If all rows were asked with one template after all, it was `medalpaca`:
  `--template medalpaca` asks so.
- ChatDoctor was tuned by Stanford's `train.py` (the command in its README), hence `alpaca_legacy`. Its chat program
  asks otherwise: `CHATDOCTOR_CHAT`. An older program of MedAlpaca's, `eval/test_chatdoctor.py`, asked a third way,
  greedily, without an input section; whether the row is that program's cannot be told.

In 8 bits are the rows that say so, and Alpaca-LoRA, which MedAlpaca's list of models loads in 8 bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from data import PromptTemplate
from data.exams import Question
from evaluation.comparison import ALL
from llama import LlamaConfig

STEPS = ("step1", "step2", "step3")
QUESTIONS = {"step1": 92, "step2": 110, "step3": 122}
"""Questions of each step that were asked, as published; most of the accuracies are shares of 91, 109 and 123 instead:
docs/reproduce.md."""
_GREETING = "ChatDoctor: I am ChatDoctor, what medical questions do you have?"

CHATDOCTOR_CHAT = PromptTemplate(
    "chatdoctor_chat",
    f"{{instruction}}\n\n{_GREETING}\n\nPatient: {{input}}\n\nChatDoctor: ",
    f"{_GREETING}\n\nPatient: {{instruction}}\n\nChatDoctor: ",
    response_split="ChatDoctor: ",
    description="The prompt of ChatDoctor's chat.py, whose instruction is: If you are a doctor, please answer the "
    "medical questions based on the patient's description.",
)


@dataclass(frozen=True)
class Preset:
    """One row.

    Attributes:
        name: what --preset calls it.
        title: what the table calls it.
        base: the LLaMA it starts from, as the configs call its directory.
        published: step -> accuracy.
        template: name of the prompt template.
        int8: whether the base is held in 8 bits.
        needs_adapter: whether a LoRA adapter is part of it (--adapter); else --base is the model itself.
        config: the training recipe that makes it, in `configs/`; "" for a model that is not tuned here.
        weights: what was published, on huggingface.co unless an address is given.
    """

    name: str
    title: str
    base: str
    published: Mapping[str, float]
    template: str = "medalpaca"
    int8: bool = False
    needs_adapter: bool = False
    config: str = ""
    weights: str = ""

    def check(self, base: str, adapter: Path | None, exam: Path | None) -> None:
        """Refuse a row without what it is about.

        Raises:
            ValueError: what is missing, or too much, and its flag.
        """
        kind = "an adapter on " if self.needs_adapter else "" if self.name == self.base else "a model tuned from "
        problems = {
            f"is {kind}{self.base}: name its directory with --base": not base,
            "is a base with a LoRA adapter: name it with --adapter": self.needs_adapter and adapter is None,
            "is a model without an adapter: leave --adapter out": adapter is not None and not self.needs_adapter,
            "is about the USMLE self-assessment: name it with --exam": exam is None,
        }
        for problem in (problem for problem, applies in problems.items() if applies):
            raise ValueError(f"--preset {self.name} {problem}")


def _row(*accuracies: float) -> dict[str, float]:
    return dict(zip(STEPS, accuracies, strict=True))


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("llama-7b", "LLaMA 7b", "llama-7b", _row(0.198, 0.202, 0.203), weights="Meta's"),
        Preset(
            "alpaca-7b",
            "Alpaca 7b naive",
            "llama-7b",
            _row(0.275, 0.266, 0.293),
            template="alpaca_legacy",
            config="configs/alpaca-7b.toml",
            weights="chavinlo/alpaca-native",
        ),
        Preset(
            "alpaca-lora-7b",
            "Alpaca 7b LoRA",
            "llama-7b",
            _row(0.220, 0.138, 0.252),
            template="alpaca",
            int8=True,
            needs_adapter=True,
            config="configs/alpaca-lora-8bit-7b.toml",
            weights="tloen/alpaca-lora-7b",
        ),
        Preset(
            "medalpaca-7b",
            "MedAlpaca 7b",
            "llama-7b",
            _row(0.297, 0.312, 0.398),
            config="configs/medalpaca-7b.toml",
            weights="medalpaca/medalpaca-7b",
        ),
        Preset(
            "medalpaca-7b-lora",
            "MedAlpaca 7b LoRA",
            "llama-7b",
            _row(0.231, 0.202, 0.179),
            needs_adapter=True,
            config="configs/medalpaca-7b-lora.toml",
            weights="medalpaca/medalpaca-lora-7b-16bit",
        ),
        Preset(
            "medalpaca-7b-lora-8bit",
            "MedAlpaca 7b LoRA 8bit",
            "llama-7b",
            _row(0.231, 0.241, 0.211),
            int8=True,
            needs_adapter=True,
            config="configs/medalpaca-7b-lora-8bit.toml",
            weights="medalpaca/medalpaca-lora-7b-8bit",
        ),
        Preset(
            "chatdoctor-7b",
            "ChatDoctor (7b)",
            "llama-7b",
            _row(0.187, 0.185, 0.148),
            template="alpaca_legacy",
            weights="https://github.com/Kent0n-Li/ChatDoctor",
        ),
        Preset("llama-13b", "LLaMA 13b", "llama-13b", _row(0.222, 0.248, 0.276), weights="Meta's"),
        Preset(
            "alpaca-13b",
            "Alpaca 13b naive",
            "llama-13b",
            _row(0.319, 0.312, 0.301),
            template="alpaca_legacy",
            config="configs/alpaca-13b.toml",
            weights="chavinlo/alpaca-13b",
        ),
        Preset(
            "medalpaca-13b",
            "MedAlpaca 13b",
            "llama-13b",
            _row(0.473, 0.477, 0.602),
            config="configs/medalpaca-13b.toml",
            weights="medalpaca/medalpaca-13b",
        ),
        Preset(
            "medalpaca-13b-lora",
            "MedAlpaca 13b LoRA",
            "llama-13b",
            _row(0.250, 0.255, 0.255),
            needs_adapter=True,
            config="configs/medalpaca-13b-lora.toml",
            weights="medalpaca/medalpaca-lora-13b-16bit",
        ),
        Preset(
            "medalpaca-13b-lora-8bit",
            "MedAlpaca 13b LoRA 8bit",
            "llama-13b",
            _row(0.189, 0.303, 0.289),
            int8=True,
            needs_adapter=True,
            config="configs/medalpaca-13b-lora-8bit.toml",
            weights="medalpaca/medalpaca-lora-13b-8bit",
        ),
    )
}


def published_beside(
    preset: Preset, shape: LlamaConfig, questions: Sequence[Question]
) -> tuple[Mapping[str, float] | None, str]:
    """The row's accuracies by group where they are about such a model and such questions; or None, and why not."""
    size = LlamaConfig.named(preset.base.removeprefix("llama-").upper())
    if (shape.dim, shape.n_layers) != (size.dim, size.n_layers):
        return None, f"{preset.title} is a {preset.base}, this model is none: its published accuracies say nothing here"
    steps = {question.step for question in questions}
    if strange := steps.difference(STEPS):
        step = sorted(strange)[0] or "no step"
        return None, f"the published accuracies are of {', '.join(STEPS)}, these questions of {step}: another exam"
    return {ALL: preset.published[steps.pop()]} if len(steps) == 1 else preset.published, ""


def find_preset(name: str) -> Preset:
    """The row of a name.

    >>> find_preset("medalpaca-7b-lora-8bits")
    Traceback (most recent call last):
    ValueError: unknown preset 'medalpaca-7b-lora-8bits': did you mean 'medalpaca-7b-lora-8bit'? --preset list shows all
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, n=1)
        hint = f": did you mean {near[0]!r}?" if near else f"; known: {', '.join(PRESETS)};"
        raise ValueError(f"unknown preset {name!r}{hint} --preset list shows all")
    return PRESETS[name]
