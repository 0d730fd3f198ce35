"""Several turns as one prompt: the exact text, its tokens, and what happens at the end of the window."""

import pytest
from tiny_models import train_tokenizer

from data import TEMPLATES, PromptTemplate, Record
from llama import Tokenizer
from recipe import prompt_ids
from recipe.conversation import Conversation, as_question, split_at_turn, turn_marks

FIRST = Record("What is gout?", "", "\nA disease of the joints. ")
SECOND = Record("How is it treated?", "The patient rests.", "")
EXPECTED = {
    "alpaca": """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
What is gout?

### Response:
A disease of the joints.

### Instruction:
How is it treated?

### Input:
The patient rests.

### Response:
""",
    "medalpaca": """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
What is gout?

### Input:


### Response:
A disease of the joints.

### Instruction:
How is it treated?

### Input:
The patient rests.

### Response:
""",
    "context_question": """\
Question: What is gout?

Answer: A disease of the joints.

Context: The patient rests.

Question: How is it treated?

Answer: """,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def conversation(tokenizer: Tokenizer, template: str | PromptTemplate, window: int = 2048) -> Conversation:
    return Conversation(PromptTemplate.named(template) if isinstance(template, str) else template, tokenizer, window)


@pytest.mark.parametrize("template", EXPECTED)
def test_two_turns(tokenizer: Tokenizer, template: str) -> None:
    assert conversation(tokenizer, template).text([FIRST], SECOND) == EXPECTED[template]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("context", ["", "The patient {rests}."])
def test_a_single_turn_is_what_the_models_were_tuned_with(tokenizer: Tokenizer, template: str, context: str) -> None:
    asked = conversation(tokenizer, template)
    ids, dropped = asked.prompt_ids([], Record("What is {gout}?", context, ""), room=9)
    assert ids == prompt_ids(asked.template, tokenizer, "What is {gout}?", context)
    assert dropped == 0


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_prompt_begins_with_the_one_before(tokenizer: Tokenizer, template: str) -> None:
    """The ids of a conversation grow at the end only, so that a cache of them would stay valid."""
    asked = conversation(tokenizer, template)
    turns: list[Record] = []
    before: list[int] = []
    for text, context in [
        ("What is gout?", ""),
        ("And asthma?", "The patient wheezes."),
        ("Fever ", ""),
        ("é 39.5", ""),
    ]:
        ids, dropped = asked.prompt_ids(turns, Record(text, context, ""), room=9)
        assert dropped == 0
        assert ids[: len(before)] == before
        assert len(ids) > len(before)
        turns.append(Record(text, context, f" It is {text}\n"))
        before = ids


def test_the_oldest_turns_go_first(tokenizer: Tokenizer) -> None:
    turns = [Record(f"Question {n}?", "", f"Answer {n}.") for n in range(5)]
    question = Record("And now?", "", "")
    lengths = [len(conversation(tokenizer, "alpaca").prompt_ids(turns[n:], question, room=1)[0]) for n in range(6)]
    for kept in range(6):
        window = lengths[5 - kept] + 30
        ids, dropped = conversation(tokenizer, "alpaca", window).prompt_ids(turns, question, room=30)
        assert (len(ids), dropped) == (lengths[5 - kept], 5 - kept)
        if kept:  # with one token less there is no room for that turn
            _, dropped = conversation(tokenizer, "alpaca", window - 1).prompt_ids(turns, question, room=30)
            assert dropped == 6 - kept


def test_the_opening_stays_when_turns_go(tokenizer: Tokenizer) -> None:
    asked = conversation(tokenizer, "alpaca", window=120)
    ids, dropped = asked.prompt_ids([FIRST] * 3, Record("Why?", "", ""), room=20)
    assert dropped > 0
    assert tokenizer.decode(ids).startswith("Below is an instruction")


def test_a_wish_for_more_room_than_half_the_window_does_not_cost_the_history(tokenizer: Tokenizer) -> None:
    asked = conversation(tokenizer, "alpaca_short", window=256)
    ids, dropped = asked.prompt_ids([FIRST], SECOND, room=10_000)
    assert len(ids) <= 128
    assert dropped == 0


def test_a_question_that_does_not_fit_alone_is_left_to_the_decoding_to_refuse(tokenizer: Tokenizer) -> None:
    ids, dropped = conversation(tokenizer, "alpaca_short", 64).prompt_ids([FIRST], Record("x" * 100, "", ""), room=8)
    assert len(ids) > 64
    assert dropped == 1


@pytest.mark.parametrize("template", ["alpaca", "alpaca_short"])
def test_another_opening(tokenizer: Tokenizer, template: str) -> None:
    """It stands in place of the template's own, or before the first turn of a template without one."""
    asked = Conversation(PromptTemplate.named(template), tokenizer, 2048, opening="Be {brief}.")
    text = asked.text([FIRST], SECOND)
    assert text.startswith("Be {brief}.\n\n### Instruction:\nWhat is gout?\n\n### Response:\nA disease")
    assert "Below" not in text
    assert Conversation(asked.template, tokenizer, 2048, opening="").text([], FIRST).startswith("### Instruction:")


@pytest.mark.parametrize(
    ("form", "opening", "turn"),
    [
        ("{instruction}\n\nA:", "", ""),
        ("Q: {instruction}\n\nA:", "", "Q: "),
        ("Be {{brief}}.\n\nQ: {instruction}\n\nA:", "Be {brief}.\n\n", "Q: "),
        ("One.\n\nTwo.\n\nUser:\n\n{instruction}\n\nA:", "One.\n\nTwo.\n\n", "User:\n\n"),
        ("Be brief.\n\n{instruction}\n\nA:", "", "Be brief.\n\n"),
    ],
)
def test_any_template_splits(tokenizer: Tokenizer, form: str, opening: str, turn: str) -> None:
    """The turn begins with the paragraph that introduces the first placeholder."""
    assert split_at_turn(form) == (opening, turn)
    own = PromptTemplate("own", form.replace("\n\nA:", " {input}\n\nA:"), form, response_split="A:")
    text = conversation(tokenizer, own).text([Record("x", "", "y")], Record("z", "", ""))
    assert text == f"{opening}{turn}x\n\nA:y\n\n{turn}z\n\nA:"
    assert turn_marks(own) == (("\n" + turn.strip(),) if turn else ())


def test_what_is_typed_takes_its_slot() -> None:
    assert as_question("Fever?", input="A child.") == Record("Fever?", "A child.", "")
    assert as_question("Fever?", instruction="Answer truthfully") == Record("Answer truthfully", "Fever?", "")
