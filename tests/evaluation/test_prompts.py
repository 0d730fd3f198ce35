from data import PromptTemplate
from data.exams import Question
from evaluation.prompts import LETTER, TEXT, Wording, pose

QUESTION = Question("1", "Which organ makes insulin?", {"A": "Liver", "B": "Pancreas"}, "B")
WITH_CONTEXT = Question("2", "Does it work?", {"A": "yes", "B": "no"}, "A", context="A trial was done.")


def test_letter_is_medalpacas_protocol() -> None:
    prompt, continuations = pose(QUESTION, PromptTemplate.named("medalpaca"), LETTER)
    assert prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAnswer this multiple choice question.\n\n"
        "### Input:\nWhich organ makes insulin?\nA: Liver\nB: Pancreas\n\n"
        "### Response:\nThe Answer to the question is:"
    )
    assert continuations == {"A": " A", "B": " B"}


def test_text_asks_as_medical_meadow_does_and_joins_as_training_does() -> None:
    prompt, continuations = pose(QUESTION, PromptTemplate.named("alpaca_short"), TEXT)
    assert prompt == (
        "### Instruction:\nAnswer this question truthfully\n\n### Input:\nWhich organ makes insulin?\n\n### Response:\n"
    )
    assert continuations == {"A": "Liver", "B": "Pancreas"}


def test_context_is_read_before_the_question() -> None:
    prompt, _ = pose(WITH_CONTEXT, PromptTemplate.named("alpaca_short"), TEXT)
    assert "### Input:\nA trial was done.\n\nDoes it work?\n\n" in prompt


def test_an_empty_instruction_puts_the_question_in_its_place() -> None:
    wording = Wording.of("text", "")
    prompt, _ = pose(WITH_CONTEXT, PromptTemplate.named("context_question"), wording)
    assert prompt == "Context: A trial was done.\n\nQuestion: Does it work?\n\nAnswer: "


def test_wording_of_each_method() -> None:
    assert Wording.of("letter") == LETTER
    assert Wording.of("text") == Wording.of("text_per_token") == Wording.of("text_per_byte") == TEXT
    changed = Wording.of("letter", "Choose.")
    assert (changed.instruction, changed.answer_prefix) == ("Choose.", LETTER.answer_prefix)
