"""The chat: its commands, its memory, Ctrl-C, and what it says of an answer; with scripted answers for a model's."""

import io
import sys
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console
from tiny_models import tiny_llama, train_tokenizer

from data import PromptTemplate, Record
from llama import Tokenizer
from recipe import Inference
from recipe.chat import COMMANDS, SETTINGS, Chat, Meter, Settings, read_setting

DEFAULTS: dict[str, float | None] = dict.fromkeys(SETTINGS) | {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "beams": 1,
    "max_new_tokens": 20,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(train_tokenizer(tmp_path_factory.mktemp("tokenizer")))


class Talk:
    """A chat whose model says "It is 0.", "It is 1.", ...; with what it was asked, and what it noted."""

    def __init__(self, tokenizer: Tokenizer, template: str = "alpaca_short", *, window: int = 256, **chat: object):
        self.tokenizer = tokenizer
        self.prompts: list[str] = []
        self.numbers: list[int] = []
        self.said = io.StringIO()
        notes = Console(file=self.said, soft_wrap=True, markup=False, highlight=False)
        model = tiny_llama(0, vocab_size=tokenizer.vocab_size, max_seq_len=window)
        inference = Inference(model, tokenizer, PromptTemplate.named(template), "a tiny model")
        self.chat = Chat(inference, self.decoder, DEFAULTS, notes, stop=("\n###",), **chat)

    def decoder(self, settings: Settings) -> Callable[[list[int], int], Iterator[int]]:
        if settings["temperature"] < 0:
            raise ValueError(f"temperature = {settings['temperature']} must be 0 or more")
        return self.decode

    def decode(self, prompt: list[int], number: int) -> Iterator[int]:
        if len(prompt) >= self.chat.conversation.window:
            raise ValueError("the prompt fills the window")
        self.prompts.append(self.tokenizer.decode(prompt))
        self.numbers.append(number)
        return iter(self.tokenizer.encode(f"It is {len(self.prompts) - 1}.\n### Instruction:\nAnd?"))

    def notes(self) -> str:
        """What was noted since the last time."""
        text = self.said.getvalue()
        self.said.truncate(0)
        self.said.seek(0)
        return text

    def run(self, monkeypatch: pytest.MonkeyPatch, *typed: str | BaseException) -> None:
        lines = iter([*typed, EOFError()])

        def read_line(_: str) -> str:
            item = next(lines)
            if isinstance(item, BaseException):
                raise item
            return item

        monkeypatch.setattr("builtins.input", read_line)
        self.chat.run()


def test_a_turn_is_remembered(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk(tokenizer)
    talk.chat.ask("What is gout?")
    talk.chat.ask("Why?")
    assert capsys.readouterr().out == " It is 0.\n It is 1.\n"  # the scripted ids have the dummy prefix
    assert talk.prompts[1] == (
        "### Instruction:\nWhat is gout?\n\n### Response:\nIt is 0.\n\n### Instruction:\nWhy?\n\n### Response:\n"
    )
    assert talk.chat.turns[1] == Record("Why?", "", "It is 1.")
    talk.chat.command("/reset")
    talk.chat.ask("Why?")
    assert talk.prompts[2] == "### Instruction:\nWhy?\n\n### Response:\n"


def test_memory_can_be_off(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer)
    talk.chat.ask("One?")
    talk.chat.command("/history off")
    assert talk.notes().endswith("history is off, 1 turn held\n")
    talk.chat.ask("Two?")
    assert "One?" not in talk.prompts[1]
    talk.chat.command("/history on")
    talk.chat.ask("Three?")
    assert "One?" in talk.prompts[2]
    assert "Two?" not in talk.prompts[2]
    with pytest.raises(ValueError, match="/history maybe: say on or off"):
        talk.chat.command("/history maybe")


def test_a_full_window_forgets_the_oldest_turns_and_says_so_once(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer)
    for n in range(12):
        talk.chat.ask(f"Question {n}?")
    assert "Question 0?" not in talk.prompts[-1]
    assert "Question 10?" in talk.prompts[-1]
    assert 1 < len(talk.chat.turns) < 12
    assert talk.notes().count("The window is full") == 1


def test_a_question_that_was_refused_costs_no_history(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer)
    talk.chat.ask("One?")
    with pytest.raises(ValueError, match="fills the window"):
        talk.chat.ask("x" * 300)
    assert [turn.instruction for turn in talk.chat.turns] == ["One?"]


def test_ctrl_c_stops_the_answer_and_keeps_its_beginning(
    tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(prompt: list[int], number: int) -> Iterator[int]:
        yield from tokenizer.encode("It is")
        raise KeyboardInterrupt

    talk = Talk(tokenizer, interactive=True)
    talk.decode = interrupted
    talk.chat.ask("What is gout?")
    assert capsys.readouterr().out == " It is\n"
    assert talk.chat.turns == [Record("What is gout?", "", "It is")]
    assert "stopped: " in talk.notes()


def test_an_answer_stopped_before_it_began_is_not_remembered(tokenizer: Tokenizer) -> None:
    def interrupted(prompt: list[int], number: int) -> Iterator[int]:
        raise KeyboardInterrupt
        yield

    talk = Talk(tokenizer, interactive=True)
    talk.decode = interrupted
    talk.chat.ask("What is gout?")
    assert talk.chat.turns == []
    assert "stopped: 0 tokens, 32 of" in talk.notes()  # and no rate of nothing


def test_ctrl_c_at_the_prompt(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only two in a row leave."""
    talk = Talk(tokenizer, interactive=True)
    talk.run(monkeypatch, KeyboardInterrupt(), "What?", KeyboardInterrupt(), "/reset")
    assert talk.notes().count("Ctrl-C again, or Ctrl-D, ends the chat.") == 2
    with pytest.raises(KeyboardInterrupt):
        talk.run(monkeypatch, KeyboardInterrupt(), KeyboardInterrupt(), "What?")
    assert len(talk.prompts) == 1


def test_lines(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank ones are skipped, a backslash joins, // is a question, /quit leaves; questions are numbered."""
    talk = Talk(tokenizer, memory=False, interactive=True)
    talk.run(monkeypatch, "  ", "What is \\", "  gout?\\", "", "//help?", "Last\\", EOFError(), "/quit", "Never read")
    asked = [prompt.partition("\n\n")[0].removeprefix("### Instruction:\n") for prompt in talk.prompts]
    assert asked == ["What is \n  gout?", "/help?", "Last"]
    assert talk.numbers == [0, 1, 2]


def test_errors_end_a_script_and_not_a_chat(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["/rest", "x" * 300, "What?"]
    talk = Talk(tokenizer, interactive=True)
    talk.run(monkeypatch, *typed)
    notes = talk.notes()
    assert "error: no command /rest; the nearest is /reset. A question that begins so: //rest\n" in notes
    assert "error: the prompt fills the window\n" in notes
    assert len(talk.prompts) == 1
    with pytest.raises(ValueError, match="no command /rest"):
        Talk(tokenizer).run(monkeypatch, *typed)


def test_system_of_a_template_with_an_opening(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, "alpaca")
    own = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    for command, opening in [("/system", own), ("/system Be brief.", "Be brief."), ("/system off", own)]:
        talk.chat.command(command)
        assert talk.notes() == f"opening: {opening}\n"
        talk.chat.ask("What?")
        assert talk.prompts[-1].startswith(f"{opening}\n\n### Instruction:\nWhat?")
        talk.notes()


def test_system_of_a_template_without_an_opening_is_the_context(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, "context_question", memory=False)
    for command, context, prompt in [
        ("/system", "none", "Question: Why?\n\nAnswer:"),
        ("/system Gout  hurts.", "Gout  hurts.", "Context: Gout  hurts.\n\nQuestion: Why?\n\nAnswer:"),
        ("/input It is late.", "It is late.", "Context: It is late.\n\nQuestion: Why?\n\nAnswer:"),
        ("/input off", "none", "Question: Why?\n\nAnswer:"),
    ]:
        talk.chat.command(command)
        assert talk.notes() == f"input: {context}\n"
        talk.chat.ask("Why?")
        assert talk.prompts[-1] == prompt
        talk.notes()


def test_with_an_instruction_the_question_is_the_input(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer, instruction="Answer truthfully")
    talk.chat.ask("Why?")
    assert "Answer truthfully\n\n### Input:\nWhy?" in talk.prompts[0]
    with pytest.raises(ValueError, match="leave --instruction out"):
        talk.chat.command("/input It is late.")


def test_settings(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer)
    talk.chat.command("/set temperature 0.4")
    talk.chat.command("/set top-k 40")
    assert talk.chat.settings == DEFAULTS | {"temperature": 0.4, "top_k": 40}
    talk.notes()
    talk.chat.command("/set top_k off")
    assert talk.notes() == (
        "temperature 0.4, top_k off, top_p off, repetition_penalty 1.0, beams 1, max_new_tokens 20\n"
    )
    with pytest.raises(ValueError, match=r"temperature = -1\.0"):
        talk.chat.command("/set temperature -1")
    assert talk.chat.settings["temperature"] == 0.4
    assert DEFAULTS["temperature"] == 0.0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temprature", "1", "no such setting; the nearest is temperature"),
        ("top_k", "5.5", "give a whole number or off"),
        ("temperature", "off", "give a number, as in /set temperature 1"),
        ("max_new_tokens", "", "give a whole number"),
    ],
)
def test_settings_that_are_none(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_setting(name, text)


def test_help_names_every_command(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer)
    talk.chat.command("/help")
    text = talk.notes()
    assert [line.split()[0] for line in text.splitlines()[: len(COMMANDS)]] == list(COMMANDS)
    assert all(name in text for name in SETTINGS)


def test_control_characters_do_not_reach_a_terminal(
    tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(tokenizer)
    talk.decode = lambda *_: iter(tokenizer.encode("a\x1b[2J\tb"))
    talk.chat.ask("What?")
    assert capsys.readouterr().out == " a\x1b[2J\tb\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    talk.chat.ask("What?")
    assert capsys.readouterr().out == " a�[2J\tb\n"


def ticking(*times: float) -> Callable[[], float]:
    return iter(times).__next__


@pytest.mark.parametrize(
    ("n_ids", "streaming", "line"),
    [
        (5, True, "5 tokens, 2.0 tokens/s, first after 0.8 s, 105 of 2048 window tokens"),
        (1, True, "1 token, first after 0.8 s, 101 of 2048 window tokens"),
        (0, True, "0 tokens, 100 of 2048 window tokens"),
        (5, False, "5 tokens, all after 0.8 s, 105 of 2048 window tokens"),
    ],
)
def test_the_meter(n_ids: int, streaming: bool, line: str) -> None:
    """The first id 0.8 s after the start, each other half a second after the one before: 4 in 2 s."""
    meter = Meter(100, 2048, streaming=streaming, clock=ticking(10.0, 10.8, 11.3, 11.8, 12.3, 12.8))
    assert list(meter.watch(iter(range(n_ids)))) == list(range(n_ids))
    assert str(meter) == line
