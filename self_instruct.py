"""Self-Instruct: let a model write tasks to train on, from a few that people wrote.

    python self_instruct.py --seeds seed_tasks.jsonl --base DIR --out tasks.json --count 100   until 100 are kept
    python self_instruct.py --seeds seed_tasks.jsonl --base DIR --out tasks.json --count 999   goes on to 999
    python self_instruct.py --seeds seed_tasks.jsonl --out tasks.json --preview                the prompt; what came

Every round is on the disk before the next begins, in a journal beside the output: the same command after an
interruption goes on from there. The output is a JSON list in the form of Alpaca's data, which train.py reads.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data.preview import printable
from data.self_instruct import (
    Completion,
    Journal,
    Kept,
    Round,
    SelfInstruct,
    Settings,
    barren_requests,
    check_unchanged,
    load_preamble,
    load_seeds,
    make_tasks,
    open_journal,
    print_summary,
    read_journal,
    render_prompt,
    write_tasks,
)
from files.fields import Place
from files.writing import make_folder
from llama.decoding import Sampling, generate_many, in_order
from recipe import Inference, ModelOptions, plain_errors

NOTES = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
JOURNAL_SUFFIX = ".journal.jsonl"


@dataclass(frozen=True)
class Options:
    """Self-Instruct: let a model write tasks to train on, from a few that people wrote."""

    seeds: Path
    """Tasks that people wrote: Self-Instruct's or Alpaca's rows, in a .jsonl or .json."""
    out: Path
    """Where the tasks go, a .json; the journal lies beside it, NAME.journal.jsonl."""
    count: int = 100
    """Tasks to keep. More can be asked for later."""
    model: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    preamble: str = "full"
    """What stands above the seed tasks: full, short (for small windows), or a text file; {tasks} becomes --tasks."""
    temperature: float = 1.0
    """Of sampling: 1 as the model says, less keeps to the likely, 0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Sample from the most probable tokens that have this much of the mass; 1 from all."""
    max_new_tokens: int = 3072
    """Length of a completion at most; less where the model's window ends before."""
    room: int = 512
    """Tokens of the window that a prompt must leave; seed tasks are drawn anew until it does."""
    give_up: int = 200
    """Requests in a row without a task to keep after which the run ends."""
    preview: bool = False
    """Only show the first prompt and what the journal holds so far; no model is loaded."""
    show: int = 3
    """Tasks shown in the summary."""

    def __post_init__(self) -> None:
        refused = {
            f"--out {self.out} must end in .json: it is one JSON list": self.out.suffix != ".json",
            f"--out {self.out} is --seeds itself: name another file": self.out.resolve() == self.seeds.resolve(),
            f"--template {self.model.template} has no effect here: the prompt is a list of tasks, see --preamble": (
                self.model.template is not None
            ),
            f"--show {self.show} must not be negative": self.show < 0,
        }
        for name in ("count", "max_new_tokens", "room", "give_up"):
            value = getattr(self, name)
            refused[f"--{name.replace('_', '-')} {value} must be at least 1"] = value < 1
        for reason in (reason for reason, applies in refused.items() if applies):
            raise ValueError(reason)
        Sampling(self.temperature, top_p=self.top_p)

    def identity(self, work: SelfInstruct) -> dict[str, Any]:
        """What the stream of tasks depends on, the model apart; the device is not, though it rounds otherwise."""
        numbers = {name: getattr(self.model, name) for name in ("int8", "int8_threshold", "dtype")}
        sampling = {name: getattr(self, name) for name in ("temperature", "top_p", "max_new_tokens", "room")}
        return work.identity() | numbers | sampling

    @property
    def journal(self) -> Path:
        """Where the rounds go."""
        return self.out.with_suffix(JOURNAL_SUFFIX)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, load the model, make the tasks."""
    with plain_errors(out_of_memory="lower --batch-size or --max-new-tokens, or add --int8"):
        # Within, for tyro passes on what the nested `Settings` refuse.
        options = tyro.cli(Options, args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
        try:
            run(options)
        except BrokenPipeError:  # whoever read the preview has left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + 13)  # a shell's status for SIGPIPE


def run(options: Options) -> None:
    """Make tasks until there are enough, or until the model gives none any more."""
    work = SelfInstruct(load_seeds(options.seeds), options.settings, preamble=load_preamble(options.preamble))
    if options.preview:
        return preview(options, work)
    if options.out.exists() and not options.journal.exists():
        problem = f"is there already, and {options.journal.name}, the journal that it would have come from, is not"
        raise Place(options.out).unsuitable(problem, "name another --out")
    make_folder(options.out.parent)
    with open_journal(options.journal, options.identity(work)) as journal:  # bad files show before the long load
        check_unchanged(options.out, journal.kept)
        tasks = make(options, work, journal)
        if tasks:
            check_unchanged(options.out, journal.kept)  # it was at hand for as long as the tasks took
            write_tasks(options.out, tasks)
        print_summary(journal.rounds, show=options.show)
        if len(tasks) < options.count:
            barren = barren_requests(journal.rounds)
            raise ValueError(
                f"gave up: {barren} requests in a row gave no task to keep, {len(tasks)} of {options.count} are kept; "
                "take a larger model, or raise --give-up to go on"
            )
    NOTES.print(f"{len(tasks):,} tasks: {options.out}")


def make(options: Options, work: SelfInstruct, journal: Journal) -> list[Kept]:
    """The tasks, with a bar on the terminal; the model is loaded only if some are missing."""
    known = len(journal.kept)
    sampler = Sampler(options, work)
    if known < options.count and barren_requests(journal.rounds) < options.give_up:
        sampler.load()  # before there is a bar, for it shows one itself
        journal.set_model(sampler.inference.identity())
    with Progress(
        TextColumn("kept"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=NOTES,
        disable=not NOTES.is_terminal,
    ) as progress:
        bar = progress.add_task("", total=options.count, completed=min(known, options.count))
        sampler.say = lambda text: progress.update(bar, description=text)

        def watch(done: Round) -> None:
            progress.advance(bar, len(done.kept))

        return make_tasks(work, journal, sampler, count=options.count, give_up=options.give_up, watch=watch)


class Sampler:
    """The model that completes prompts.

    Attributes:
        inference: the model; there after `load`.
        say: is told how far a round has come.
    """

    inference: Inference

    def __init__(self, options: Options, work: SelfInstruct) -> None:
        self._options, self._work = options, work
        self.say: Callable[[str], object] = lambda text: None
        work.fits = self.fits

    def load(self) -> None:
        """Load the model, and refuse a window that not even the shortest seed tasks leave room in."""
        self.inference = self._options.model.load()
        NOTES.print(self.inference.description.partition(", template ")[0], style="dim")  # none is asked with
        self._check_window()

    def fits(self, prompt: str) -> bool:
        """Whether the window has room for the prompt, and --room tokens more."""
        return self._length(prompt) + self._options.room <= self.inference.model.config.max_seq_len

    def __call__(self, prompts: Sequence[str], first: int) -> list[Completion]:
        """Continue each prompt; request n draws from a generator of its own, of seed --seed + n."""
        inference, options = self.inference, self._options
        ids = [inference.tokenizer.encode(prompt, bos=True) for prompt in prompts]
        limits = [inference.answer_limit(prompt, options.max_new_tokens) for prompt in ids]
        found = generate_many(
            inference.model,
            ids,
            batch_size=len(ids),
            max_new_tokens=limits,
            temperature=options.temperature,
            top_p=options.top_p,
            stop_ids={inference.tokenizer.eos_id},
            generators=[torch.Generator().manual_seed(options.settings.seed + first + n) for n in range(len(ids))],
        )
        completions = []
        for n, (answer, limit) in enumerate(zip(in_order(found), limits, strict=True), start=1):
            text = inference.tokenizer.decode(answer, continues=True)
            completions.append(Completion(text, cut=len(answer) == limit))
            self.say(f"of {first + n:,} requests")
        return completions

    def _length(self, prompt: str) -> int:
        return len(self.inference.tokenizer.encode(prompt, bos=True))

    def _check_window(self) -> None:
        shots, room = self._options.settings.shots, self._options.room
        window = self.inference.model.config.max_seq_len
        shortest = sorted(self._work.seeds, key=lambda task: len(task.instruction + task.input + task.output))[:shots]
        length = self._length(render_prompt(self._work.preamble, shortest, self._options.settings.tasks))
        if length + room > window:
            shorter = "" if self._options.preamble == "short" else ", or take --preamble short"
            raise ValueError(
                f"even with the {shots} shortest seed tasks a prompt has {length} tokens, and with --room {room} the "
                f"model's window of {window} is too small: lower --shots or --room{shorter}"
            )


def preview(options: Options, work: SelfInstruct) -> None:
    """Print the first prompt, whatever the window, and what the journal holds."""
    prompts, _ = work.prompts(1)
    print(printable(prompts[0]))
    if options.journal.exists():
        print_summary(read_journal(options.journal), show=options.show)
    else:
        NOTES.print(f"{len(work.seeds):,} seed tasks; no journal {options.journal} yet")


if __name__ == "__main__":
    main()
