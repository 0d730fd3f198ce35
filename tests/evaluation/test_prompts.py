from data import PromptTemplate
from data.exams import Question
from evaluation.prompts import LETTER, LINE, OWN_WORDS, TEXT, Wording, pose, pose_nothing, with_shots

SHORT = PromptTemplate.named("alpaca_short")
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
    assert Wording.of("letter_calibrated") == LETTER
    assert Wording.of("text_calibrated", None, "It is").answer_prefix == "It is"


def test_a_line_is_answered_as_it_is_listed() -> None:
    prompt, continuations = pose(QUESTION, SHORT, LINE)
    assert prompt == pose(QUESTION, SHORT, LETTER)[0]
    assert continuations == {"A": " A: Liver", "B": " B: Pancreas"}
    assert pose(QUESTION, SHORT, OWN_WORDS)[0].endswith("B: Pancreas\n\n### Response:\n")
    assert pose(QUESTION, SHORT, OWN_WORDS)[1] == {"A": "A: Liver", "B": "B: Pancreas"}


def test_nothing_is_asked_in_the_same_words() -> None:
    assert pose_nothing(WITH_CONTEXT, SHORT, LETTER) == (
        "### Instruction:\nAnswer this multiple choice question.\n\n"
        "### Input:\nN/A\nA: N/A\nB: N/A\n\n"
        "### Response:\nThe Answer to the question is:"
    )
    assert pose_nothing(QUESTION, SHORT, TEXT) == (
        "### Instruction:\nAnswer this question truthfully\n\n### Response:\n"
    )
    without = pose_nothing(QUESTION, PromptTemplate.named("context_question"), Wording.of("text", "", "It is"))
    assert without == "Question: \n\nAnswer: It is"


def test_shots_are_answered_prompts_before_the_question() -> None:
    prompt, _ = pose(QUESTION, SHORT, LINE)
    shown, continuations = pose(WITH_CONTEXT, SHORT, LINE)
    whole = with_shots(prompt, [WITH_CONTEXT, QUESTION], SHORT, LINE)
    assert whole == f"{shown} A: yes\n\n{prompt} B: Pancreas\n\n{prompt}"
    assert continuations["A"] == " A: yes"
    assert with_shots(prompt, [], SHORT, LINE) == prompt


def test_shots_of_the_text_form_are_joined_as_in_training() -> None:
    prompt, _ = pose(QUESTION, SHORT, TEXT)
    assert with_shots(prompt, [QUESTION], SHORT, TEXT) == f"{prompt}Pancreas\n\n{prompt}"
