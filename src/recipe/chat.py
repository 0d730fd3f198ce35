"""A chat at the terminal: questions and commands in, answers out, with a memory as long as the window.

Answers go to standard output as they come; everything else goes to the notes: after each answer how many tokens it has
and how fast they came. Ctrl-C ends the answer and keeps what there is of it; at the prompt, a second one ends the chat.

The same loop reads a pipe, one turn a line, for scripts. Nobody is there to answer an error then: it ends the chat, as
Ctrl-C does.
"""

import contextlib
import difflib
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from rich.console import Console

from data import Record
from llama.decoding import stream_text
from recipe.conversation import Conversation, as_question
from recipe.inference import Inference

Settings = Mapping[str, float | None]
Decode = Callable[[list[int], int], Iterator[int]]

SETTINGS: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "repetition_penalty": float,
    "beams": int,
    "max_new_tokens": int,
}
"""What /set changes, and how its value is read."""
CAN_BE_OFF = ("top_k", "top_p")

COMMANDS = {
    "/help": "this list",
    "/reset": "forget all turns",
    "/history": "[on|off]  off: questions are asked alone, and not remembered",
    "/system": "[TEXT|off]  what opens the conversation; the same as /input where the template has no opening",
    "/input": "[TEXT|off]  the context that goes with each question from here on",
    "/set": "[NAME VALUE]  how tokens are chosen: " + ", ".join(SETTINGS),
    "/quit": "leave, as Ctrl-D does",
}
MORE_HELP = """\
A command without its argument shows what is set; off takes it back.
A line that ends in \\ goes on in the next one. A question that begins with / is typed with //.
Ctrl-C stops an answer, and keeps what there is of it."""


class Meter:
    """Counts and times the ids that pass through `watch`. Its time begins when it is made.

    Args:
        prompt_tokens, window: of the model's window, what the prompt takes and the whole.
        streaming: the ids come one by one as they are made, so that the time between them means something.
    """

    def __init__(
        self, prompt_tokens: int, window: int, *, streaming: bool = True, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.prompt_tokens, self.window, self.streaming, self.clock = prompt_tokens, window, streaming, clock
        self.count = 0
        self.begun = self.first = self.last = clock()

    def watch(self, ids: Iterator[int]) -> Iterator[int]:
        """The ids, unchanged."""
        for token_id in ids:
            self.last = self.clock()
            self.first = self.last if self.count == 0 else self.first
            self.count += 1
            yield token_id

    def __str__(self) -> str:
        """What was counted, in one line. The rate leaves out the first token, which waits for the prompt to be read."""
        parts = [f"{self.count} token{'' if self.count == 1 else 's'}"]
        if self.streaming and self.last > self.first:
            parts.append(f"{(self.count - 1) / (self.last - self.first):.1f} tokens/s")
        if self.count:
            parts.append(f"{'first' if self.streaming else 'all'} after {self.first - self.begun:.1f} s")
        return ", ".join([*parts, f"{self.prompt_tokens + self.count} of {self.window} window tokens"])


@dataclass
class Chat:
    """A conversation with a model, and the commands that steer it.

    Attributes:
        decoder: settings -> (prompt ids, number of the question -> ids of its answer). ValueError at the first call for
            settings, at the second for a prompt, that cannot be served.
        settings: a value for each of SETTINGS.
        notes: where everything that is not an answer goes.
        instruction, input: see `as_question`.
        stop: texts that end an answer.
        memory: whether a question is asked after the turns before it, and remembered.
        interactive: somebody types; see the module.
    """

    inference: Inference
    decoder: Callable[[Settings], Decode]
    settings: Settings
    notes: Console
    instruction: str = ""
    input: str = ""
    stop: tuple[str, ...] = ()
    memory: bool = True
    interactive: bool = False
    turns: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        model, template = self.inference.model, self.inference.template
        self.conversation = Conversation(template, self.inference.tokenizer, model.config.max_seq_len)
        self.warned = False  # that turns were dropped

    def run(self) -> None:
        """Answer what is typed until the end of the input."""
        if self.interactive:
            prepare_line_editing()
            self.notes.print("Ctrl-C stops an answer, Ctrl-D ends the chat, /help lists the commands.")
        number, interrupted = 0, False
        while True:
            reading = True
            try:
                line = self.read()
                reading = interrupted = False
                if line == "/quit":
                    return
                if line.startswith("/") and not line.startswith("//"):
                    self.command(line)
                elif line:
                    self.ask(line.removeprefix("/") if line.startswith("//") else line, number)
                    number += 1
            except EOFError:
                return self.notes.print() if self.interactive else None
            except KeyboardInterrupt:
                if not self.interactive or interrupted:
                    raise
                interrupted = reading
                self.notes.print("\nCtrl-C again, or Ctrl-D, ends the chat." if reading else "")
            except ValueError as error:
                if not self.interactive:
                    raise
                self.notes.print(f"error: {error}")

    def read(self) -> str:
        """What is typed next: a line, and those that a backslash at its end joins to it."""
        lines = [self.read_line("> ")]
        with contextlib.suppress(EOFError):
            while lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
                lines.append(self.read_line("... "))
        return "\n".join(lines).strip()

    def read_line(self, prompt: str) -> str:
        """One line of standard input."""
        if self.interactive and sys.stdout.isatty():
            return input(prompt)  # readline has to know the prompt to redraw it
        if self.interactive:
            self.notes.print(prompt, end="")
        return input("")

    def ask(self, text: str, number: int = 0) -> None:
        """Print the answer to a question, and remember both. `number` is for the decoder.

        Raises:
            ValueError: the question cannot be served; nothing is remembered then.
        """
        question = as_question(text, instruction=self.instruction, input=self.input)
        turns = self.turns if self.memory else []
        room = int(self.settings["max_new_tokens"] or 0)
        prompt, dropped = self.conversation.prompt_ids(turns, question, room=room)
        meter = Meter(len(prompt), self.conversation.window, streaming=self.settings["beams"] == 1)
        ids = meter.watch(self.decoder(self.settings)(prompt, number))
        if dropped:
            self.forget(dropped)
        show = printable if sys.stdout.isatty() else str
        pieces: list[str] = []
        stopped = ""
        try:
            for piece in stream_text(self.inference.tokenizer, ids, self.stop, continues=True):
                pieces.append(piece)
                print(show(piece), end="", flush=True)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            stopped = "stopped: "
        print(flush=True)
        self.notes.print(f"{stopped}{meter}", style="dim")
        if self.memory and (answer := "".join(pieces).strip()):  # an empty answer would teach the model to give none
            self.turns.append(replace(question, output=answer))

    def forget(self, dropped: int) -> None:
        """Drop the oldest turns for good, so that the next prompt begins like this one; say so the first time."""
        del self.turns[:dropped]
        if not self.warned:
            self.notes.print("The window is full: from here on the oldest turns are forgotten.", style="dim")
        self.warned = True

    def command(self, line: str) -> None:
        """Do what a line that begins with / says.

        Raises:
            ValueError: no such command, or a wrong argument.
        """
        name, *rest = line.split(maxsplit=1)
        argument = rest[0] if rest else ""
        handlers = {"/history": self.set_memory, "/system": self.set_system, "/input": self.set_input, "/set": self.set}
        if name == "/help":
            self.notes.print("\n".join([*(f"{name:<9} {text}" for name, text in COMMANDS.items()), MORE_HELP]))
        elif name == "/reset":
            self.turns.clear()
            self.warned = False
            self.notes.print("All turns are forgotten.")
        elif name in handlers:
            handlers[name](argument)
        else:
            nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0)[0]
            raise ValueError(f"no command {name}; the nearest is {nearest}. A question that begins so: /{line}")

    def set_memory(self, argument: str) -> None:
        """Command /history."""
        if argument not in ("", "on", "off"):
            raise ValueError(f"/history {argument}: say on or off")
        self.memory = self.memory if not argument else argument == "on"
        count = len(self.turns)
        self.notes.print(f"history is {'on' if self.memory else 'off'}, {count} turn{'' if count == 1 else 's'} held")

    def set_system(self, argument: str) -> None:
        """Command /system."""
        first = self.turns[0] if self.turns else as_question("", instruction=self.instruction, input=self.input)
        if not replace(self.conversation, opening=None).opening_of(first):
            return self.set_input(argument)
        if argument:
            self.conversation = replace(self.conversation, opening=None if argument == "off" else argument)
        self.notes.print(f"opening: {self.conversation.opening_of(first)}")

    def set_input(self, argument: str) -> None:
        """Command /input."""
        if self.instruction:
            raise ValueError("with --instruction every question is the input: leave --instruction out to set another")
        if argument:
            self.input = "" if argument == "off" else argument
        self.notes.print(f"input: {self.input or 'none'}")

    def set(self, argument: str) -> None:
        """Command /set."""
        if argument:
            name, _, text = argument.partition(" ")
            changed = {**self.settings, **read_setting(name.replace("-", "_"), text.strip())}
            self.decoder(changed)
            self.settings = changed
        shown = (f"{name} {'off' if value is None else value}" for name, value in self.settings.items())
        self.notes.print(", ".join(shown))


def read_setting(name: str, text: str) -> dict[str, float | None]:
    """A setting as it is typed.

    >>> read_setting("top_k", "40"), read_setting("top_p", "off")
    ({'top_k': 40}, {'top_p': None})

    Raises:
        ValueError: no such setting, or no number.
    """
    if name not in SETTINGS:
        nearest = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0)[0]
        raise ValueError(f"/set {name}: no such setting; the nearest is {nearest}")
    if text == "off" and name in CAN_BE_OFF:
        return {name: None}
    try:
        return {name: SETTINGS[name](text)}
    except ValueError:
        kind = "a whole number" if SETTINGS[name] is int else "a number"
        or_off = " or off" if name in CAN_BE_OFF else ""
        raise ValueError(f"/set {name} {text}: give {kind}{or_off}, as in /set {name} 1") from None


def printable(text: str) -> str:
    """The text without control characters, which a terminal would obey: no weights are trusted that far.

    >>> printable("clear\\x1b[2J\\n")
    'clear�[2J\\n'
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


def prepare_line_editing() -> None:
    """Give `input` editing keys and a history of this session; a paste of several lines stays one question."""
    with contextlib.suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")
