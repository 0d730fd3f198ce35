"""Ask a LLaMA: one question, a file of questions, or a chat.

    python generate.py "What is asthma?"                                                 one question
    python generate.py --adapter runs/demo/adapter --int8                                a chat; /help there
    python generate.py --prompts questions.txt --out answers.jsonl                       a file of questions
    cat questions.txt | python generate.py                                               a pipe, a question a line
    cat conversation.txt | python generate.py --chat                                     a pipe, a turn a line
    python generate.py --adapter runs/demo/adapter --side-by-side                        base next to adapter
    python generate.py --base DIR --adapter runs/medalpaca-7b-lora-8bit/adapter --int8   real weights

A chat remembers its turns, unless --single-turn says otherwise: the published models are tuned on single turns, and may
answer those better. Elsewhere each question is asked alone. Answers go to standard output, all else to standard error.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TextIO

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from rich.text import Text

from data import Record
from data.miniature import demo_questions
from files.fields import Place, check_text, text_field
from files.rows import LINE_SUFFIXES, read_lines, read_rows
from llama.decoding import Sampling, beam_search, generate, generate_many, in_order, stream_text
from lora import adapters_disabled
from recipe import Inference, ModelOptions, plain_errors, prompt_ids
from recipe.chat import SETTINGS, Chat, Settings
from recipe.conversation import STOP, as_question, ends

NOTES = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Options:
    """Ask a LLaMA: one question, a file of questions, or a chat."""

    question: tyro.conf.Positional[str | None] = None
    """The question, or instruction. Without one: a chat, or with --side-by-side the three questions of the demo."""
    input: str = ""
    """Further context for the question, where the template has a place for it."""
    instruction: str = ""
    """What to do with every question, which then is the input: "Answer this question truthfully" in Medical Meadow."""
    prompts: Path | None = None
    """File of questions: one per line; or rows {"instruction": ..., "input": ...} in a .jsonl or .json."""
    out: Path | None = None
    """With --prompts: where the answers go, as JSONL; by default standard output."""
    chat: bool = False
    """The lines of a pipe are turns of one conversation, and commands (/help), as at a terminal."""
    single_turn: bool = False
    """A chat without memory: each question is asked alone."""
    batch_size: int = 8
    """With --prompts: questions answered at once. The answers do not depend on it, up to
    rounding; a little more under --int8, which decides over the whole batch which columns stay in 16 bits."""
    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    side_by_side: bool = False
    """Answer with the base and with the adapter, next to each other."""
    temperature: float = 0.0
    """0 is greedy: always the most probable token. MedAlpaca asks at 0.4."""
    top_k: int | None = None
    """Draw from the k most probable tokens only (needs a temperature)."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities reach p (needs a temperature)."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that occurred before become less likely."""
    beams: int = 1
    """Above 1, search for the most probable whole answer (excludes the four flags above)."""
    max_new_tokens: int = 256
    """Length of an answer at most; less where the model's window ends before."""
    stop: tuple[str, ...] = STOP
    """Texts that end an answer, as EOS does and the line that begins a question in the template. A model not tuned to
    stop goes on to invent the next question."""
    seed: int = 0
    """Of the draws: same seed, same answer. The n-th question of a file or chat, from 0, takes seed + n."""

    def __post_init__(self) -> None:
        no_adapter = self.model.adapter is None
        elsewhere = self.question is not None or self.prompts or self.side_by_side
        refused = {
            "give a question or --prompts, not both": self.question is not None and self.prompts,
            "--side-by-side compares the base with an adapter: give --adapter": self.side_by_side and no_adapter,
            "--chat and --single-turn need a chat: drop the question, --prompts or --side-by-side": (
                (self.chat or self.single_turn) and elsewhere
            ),
            "--instruction makes the question the input: drop --input": self.instruction and self.input,
            "--out is for a file of questions: give --prompts": self.out and not self.prompts,
            "--top-k and --top-p need a draw: give --temperature": not self.temperature and (self.top_k or self.top_p),
            "--beams does not draw: drop --temperature": self.beams > 1 and self.temperature > 0,
            "--beams ranks by probability: drop --repetition-penalty": self.beams > 1 and self.repetition_penalty != 1,
            "--beams and --batch-size must be at least 1": self.beams < 1 or self.batch_size < 1,
        }
        for reason in (reason for reason, applies in refused.items() if applies):
            raise ValueError(reason)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, load the model, answer."""
    options = tyro.cli(Options, args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    with plain_errors(out_of_memory="lower --batch-size or --max-new-tokens, or add --int8"):
        try:
            run(options)
        except BrokenPipeError:  # who read the answers has left, as `head -1` does: no error of anybody's
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may the flush at the exit complain
            sys.exit(128 + 13)  # a shell's status for SIGPIPE


def run(options: Options) -> None:
    """Load the model and answer what was asked, in the way it was asked."""
    if options.out and options.prompts and options.out.exists() and options.out.samefile(options.prompts):
        raise ValueError("--out is --prompts itself: name another file")
    questions = read_questions(options) if options.prompts else []  # a bad file shows before the long load
    inference = options.model.load()
    NOTES.print(inference.description, style="dim")
    if options.prompts:
        check_lengths(inference, options, questions)
        with options.out.open("w", encoding="utf-8") if options.out else contextlib.nullcontext(sys.stdout) as out:
            answer_file(inference, options, questions, out)
    elif options.side_by_side:
        for text in demo_questions() if options.question is None else [options.question]:
            compare(inference, options, question_of(options, text))
    else:
        converse(inference, options)


def converse(inference: Inference, options: Options) -> None:
    """Answer the one question, or those of standard input: as a chat at a terminal, else each alone."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text reach the tokenizer, which names them
    typed = options.question is None and sys.stdin.isatty()
    chat = Chat(
        inference,
        partial(decoder, inference, options),
        {name: getattr(options, name) for name in SETTINGS},
        NOTES,
        instruction=options.instruction,
        input=options.input,
        stop=ends(inference.template, options.stop),
        memory=(typed or options.chat) and not options.single_turn,
        interactive=typed,
    )
    if typed or options.chat:
        return chat.run()
    for number, text in enumerate(filter(str.strip, sys.stdin if options.question is None else [options.question])):
        chat.ask(text.strip(), number)


def decoder(inference: Inference, options: Options, settings: Settings) -> Callable[[list[int], int], Iterator[int]]:
    """What decodes a prompt, the n-th of a chat, with some flags changed. ValueError if they cannot be served."""
    changed = replace(options, **settings)  # checks that they agree
    Sampling(**sampling(changed))  # checks their ranges
    if changed.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {changed.max_new_tokens} must be at least 1")
    return partial(answer_ids, inference, changed)


def compare(inference: Inference, options: Options, question: Record) -> None:
    """Print the base's answer and the adapter's in a table."""
    with adapters_disabled(inference.model):
        before = "".join(answer(inference, options, question))
    after = "".join(answer(inference, options, question))
    columns = (Column(name, ratio=1) for name in ("base", "with adapter"))
    asked = question.input if options.instruction else question.instruction
    table = Table(*columns, title=Text(asked, style="bold"), title_justify="left", expand=True)
    table.add_row(Text(before.strip()), Text(after.strip()))  # Text: an answer may look like rich's markup
    Console().print(table)


def question_of(options: Options, text: str) -> Record:
    """The question in the slots of the template that the flags say."""
    return as_question(text.strip(), instruction=options.instruction, input=options.input)


def answer(inference: Inference, options: Options, question: Record) -> Iterator[str]:
    """Yield the answer's text as it comes; a beam search has it all at once."""
    ids = answer_ids(inference, options, encode_prompt(inference, question), question.row)
    yield from stream_text(inference.tokenizer, ids, ends(inference.template, options.stop), continues=True)


def answer_ids(inference: Inference, options: Options, prompt: list[int], number: int) -> Iterator[int]:
    """The ids that follow a prompt, the n-th of its file or chat."""
    limit, stop_ids = inference.answer_limit(prompt, options.max_new_tokens), {inference.tokenizer.eos_id}
    if options.beams > 1:
        found = beam_search(inference.model, prompt, beams=options.beams, max_new_tokens=limit, stop_ids=stop_ids)
        return iter(found[0].ids)
    rng = torch.Generator().manual_seed(options.seed + number)
    return generate(
        inference.model, prompt, max_new_tokens=limit, stop_ids=stop_ids, generator=rng, **sampling(options)
    )


def answers(inference: Inference, options: Options, questions: list[Record]) -> Iterator[str]:
    """Yield the answer to each question, in their order, as if it were asked alone (see --batch-size)."""
    if options.beams > 1:
        yield from ("".join(answer(inference, options, question)).strip() for question in questions)
        return
    prompts = [encode_prompt(inference, question) for question in questions]
    found = generate_many(
        inference.model,
        prompts,
        batch_size=options.batch_size,
        max_new_tokens=[inference.answer_limit(prompt, options.max_new_tokens) for prompt in prompts],
        stop_ids={inference.tokenizer.eos_id},
        generators=[torch.Generator().manual_seed(options.seed + question.row) for question in questions],
        **sampling(options),
    )
    stops = ends(inference.template, options.stop)
    for ids in in_order(found):
        yield "".join(stream_text(inference.tokenizer, ids, stops, continues=True)).strip()


def answer_file(inference: Inference, options: Options, questions: list[Record], out: TextIO) -> None:
    """Write a JSON line per question, in the file's order, each as soon as it and those before it are answered.

    Side by side, the base answers the whole file first.
    """
    before: list[str] = []
    if options.side_by_side:
        with adapters_disabled(inference.model):
            before = list(track_answers(answers(inference, options, questions), len(questions), "the base"))
    after = track_answers(answers(inference, options, questions), len(questions), "answering")
    for row, (question, text) in enumerate(zip(questions, after, strict=True)):
        found = {"output": text} | ({"base_output": before[row]} if before else {})
        line = {"instruction": question.instruction, "input": question.input, **found}
        out.write(json.dumps(line, ensure_ascii=False) + "\n")
        out.flush()


def track_answers(texts: Iterator[str], total: int, name: str) -> Iterable[str]:
    """Show a bar on the terminal while the texts come."""
    return track(texts, name, total, console=NOTES, disable=not NOTES.is_terminal)


def check_lengths(inference: Inference, options: Options, questions: list[Record]) -> None:
    """Refuse a file with a question that leaves no room for an answer, before the first is answered."""
    window = inference.model.config.max_seq_len
    for question in questions:
        if (length := len(encode_prompt(inference, question))) >= window:
            long = f"question {question.row + 1} has {length} tokens and fills the model's window of {window}"
            raise Place(options.prompts).unsuitable(f"{long}: shorten it")


def encode_prompt(inference: Inference, question: Record) -> list[int]:
    """The question as token ids for the model to continue."""
    return prompt_ids(inference.template, inference.tokenizer, question.instruction, question.input)


def sampling(options: Options) -> dict[str, Any]:
    """The flags that say how a token is chosen, under the names that `generate` gives them."""
    return {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}


def read_questions(options: Options) -> list[Record]:
    """The questions of --prompts as records without an output, numbered from 0."""
    file = options.prompts
    assert file is not None
    if file.suffix in (*LINE_SUFFIXES, ".json"):
        found = [
            Record(text_field(row, "instruction", place), text_field(row, "input", place, default=""), "")
            for _, place, row in read_rows(file)
        ]
    else:
        found = []
        for number, line in read_lines(file):
            check_text(line, "the question", Place(file, f"line {number}"))
            if line.strip():
                found.append(question_of(options, line))
    if not found:
        raise Place(file).unsuitable("holds no questions: write one per line")
    return [replace(question, row=row) for row, question in enumerate(found)]


if __name__ == "__main__":
    main()
