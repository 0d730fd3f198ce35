"""Ask a LLaMA: one question, a file of questions, or a chat.

    python generate.py "What is asthma?"                                                 one question
    python generate.py --adapter runs/demo/adapter --int8                                a chat
    python generate.py --prompts questions.txt --out answers.jsonl                       a file of questions
    cat questions.txt | python generate.py                                               a pipe
    python generate.py --adapter runs/demo/adapter --side-by-side                        base next to adapter
    python generate.py --base DIR --adapter runs/medalpaca-7b-lora-8bit/adapter --int8   real weights

Each question is answered without memory of those before it: the models are tuned on single turns. Answers go to
standard output, everything else to standard error.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TextIO

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from rich.text import Text

from data.miniature import demo_questions
from data.records import LINE_SUFFIXES, Record, read_rows, read_text, text_field
from llama.decoding import beam_search, generate, generate_batch, stream_text
from lora import adapters_disabled
from recipe import Inference, ModelOptions, plain_errors, prompt_ids

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
    batch_size: int = 8
    """With --prompts: questions answered at once. The answers do not depend on it, except a little
    under --int8, which decides over the whole batch which columns stay in 16 bits."""
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
    stop: tuple[str, ...] = ("### Instruction:",)
    """Texts that end an answer, as EOS does. A model not tuned to stop goes on to invent the next question."""
    seed: int = 0
    """Of the draws: same seed, same answer. The n-th question of a file, from 0, takes seed + n."""

    def __post_init__(self) -> None:
        no_adapter = self.model.adapter is None
        refused = {
            "give a question or --prompts, not both": self.question is not None and self.prompts,
            "--side-by-side compares the base with an adapter: give --adapter": self.side_by_side and no_adapter,
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
        run(options)


def run(options: Options) -> None:
    """Load the model and answer what was asked, in the way it was asked."""
    questions = read_questions(options) if options.prompts else []  # a bad file shows before the long load
    inference = options.model.load()
    NOTES.print(inference.description, style="dim")
    if options.prompts:
        check_lengths(inference, options, questions)
        with options.out.open("w", encoding="utf-8") if options.out else contextlib.nullcontext(sys.stdout) as out:
            answer_file(inference, options, questions, out)
    elif options.question is None and not options.side_by_side and sys.stdin.isatty():
        chat(inference, options)
    else:
        asked = demo_questions() if options.side_by_side else sys.stdin
        texts = asked if options.question is None else [options.question]
        for text in filter(str.strip, texts):
            show(inference, options, as_record(options, text.strip()))


def show(inference: Inference, options: Options, question: Record) -> None:
    """Print the answer as it comes; side by side, both answers when they are complete."""
    if not options.side_by_side:
        for text in answer(inference, options, question):
            print(text, end="", flush=True)
        return print(flush=True)
    with adapters_disabled(inference.model):
        before = "".join(answer(inference, options, question))
    after = "".join(answer(inference, options, question))
    columns = (Column(name, ratio=1) for name in ("base", "with adapter"))
    asked = question.input if options.instruction else question.instruction
    table = Table(*columns, title=Text(asked, style="bold"), title_justify="left", expand=True)
    table.add_row(Text(before.strip()), Text(after.strip()))  # Text: an answer may look like rich's markup
    Console().print(table)


def as_record(options: Options, text: str) -> Record:
    """The question in the slots of the template that the flags say."""
    return Record(options.instruction, text, "") if options.instruction else Record(text, options.input, "")


def chat(inference: Inference, options: Options) -> None:
    """Answer what is typed until the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its history and editing keys
    NOTES.print("One question per line. Ctrl-C interrupts an answer, Ctrl-D ends the chat.")
    while True:
        try:
            if text := input("> ").strip():
                show(inference, options, as_record(options, text))
        except KeyboardInterrupt:
            print()
        except EOFError:
            return print()
        except ValueError as error:
            NOTES.print(f"error: {error}")


def answer(inference: Inference, options: Options, question: Record) -> Iterator[str]:
    """Yield the answer's text as it comes; a beam search has it all at once."""
    model, tokenizer = inference.model, inference.tokenizer
    prompt = encode_prompt(inference, question)
    limit, stop_ids = token_limit(inference, options, prompt), {tokenizer.eos_id}
    if options.beams > 1:
        found = beam_search(model, prompt, beams=options.beams, max_new_tokens=limit, stop_ids=stop_ids)
        ids: Iterator[int] = iter(found[0].ids)
    else:
        rng = torch.Generator().manual_seed(options.seed + question.row)
        ids = generate(model, prompt, max_new_tokens=limit, stop_ids=stop_ids, generator=rng, **sampling(options))
    yield from stream_text(tokenizer, ids, options.stop, continues=True)


def answer_batch(inference: Inference, options: Options, questions: list[Record]) -> list[str]:
    """The answers to several questions at once, each as if it were asked alone (see --batch-size)."""
    if options.beams > 1:
        return ["".join(answer(inference, options, question)).strip() for question in questions]
    prompts = [encode_prompt(inference, question) for question in questions]
    batch = generate_batch(
        inference.model,
        prompts,
        max_new_tokens=[token_limit(inference, options, prompt) for prompt in prompts],
        stop_ids={inference.tokenizer.eos_id},
        generators=[torch.Generator().manual_seed(options.seed + question.row) for question in questions],
        **sampling(options),
    )
    return ["".join(stream_text(inference.tokenizer, ids, options.stop, continues=True)).strip() for ids in batch]


def answer_file(inference: Inference, options: Options, questions: list[Record], out: TextIO) -> None:
    """Write a JSON line per question, in the file's order, as each batch is done."""
    starts = range(0, len(questions), options.batch_size)
    for start in track(starts, "answering", console=NOTES, disable=not NOTES.is_terminal):
        batch = questions[start : start + options.batch_size]
        columns = {"output": answer_batch(inference, options, batch)}
        if options.side_by_side:
            with adapters_disabled(inference.model):
                columns["base_output"] = answer_batch(inference, options, batch)
        for question, *texts in zip(batch, *columns.values(), strict=True):
            answers = dict(zip(columns, texts, strict=True))
            row = {"instruction": question.instruction, "input": question.input, **answers}
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
        out.flush()


def check_lengths(inference: Inference, options: Options, questions: list[Record]) -> None:
    """Refuse a file with a question that leaves no room for an answer, before the first is answered."""
    window = inference.model.config.max_seq_len
    for question in questions:
        if (length := len(encode_prompt(inference, question))) >= window:
            place = f"{options.prompts}: question {question.row + 1}"
            raise ValueError(f"{place} has {length} tokens and fills the model's window of {window}: shorten it")


def encode_prompt(inference: Inference, question: Record) -> list[int]:
    """The question as token ids for the model to continue."""
    return prompt_ids(inference.template, inference.tokenizer, question.instruction, question.input)


def token_limit(inference: Inference, options: Options, prompt: list[int]) -> int:
    """The most tokens an answer may have: as many as asked for, or as the window leaves after the prompt."""
    return min(options.max_new_tokens, max(1, inference.model.config.max_seq_len - len(prompt)))


def sampling(options: Options) -> dict[str, Any]:
    """The flags that say how a token is chosen, under the names that `generate` gives them."""
    return {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}


def read_questions(options: Options) -> list[Record]:
    """The questions of --prompts as records without an output, numbered from 0."""
    file = options.prompts
    assert file is not None
    if file.suffix in (*LINE_SUFFIXES, ".json"):
        found = [
            Record(text_field(row, "instruction", where), text_field(row, "input", where, default=""), "")
            for _, where, row in read_rows(file)
        ]
    else:
        found = [as_record(options, line.strip()) for line in read_text(file).split("\n") if line.strip()]
    if not found:
        raise ValueError(f"{file} holds no questions: write one per line")
    return [replace(question, row=row) for row, question in enumerate(found)]


if __name__ == "__main__":
    main()
