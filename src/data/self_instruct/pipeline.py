"""Self-Instruct (arXiv 2212.10560), as Stanford used it to make Alpaca's data: a model writes tasks for training.

    seeds ──▶ prompts ─complete─▶ completions ──▶ tasks ──▶ filters ──▶ pool ──▶ journal

A round is one call of the completion function, with as many prompts as it likes to have at once. What chance decides
follows from the seed and the number of the request, and the pool from the rounds before: the kept tasks are one stream,
of which `count` is a prefix. So a run that was killed goes on with the next round, and a larger count later goes on
where a smaller one ended, both with the tasks of a run that was never interrupted, as far as `complete` repeats
itself.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.records import Record
from data.self_instruct.filters import reason_to_drop
from data.self_instruct.journal import Journal, Round
from data.self_instruct.parsing import Completion, parse_completion
from data.self_instruct.pool import THRESHOLD, Kept, Pool
from data.self_instruct.prompts import PREAMBLES, draw_prompt
from files import write_whole
from files.fields import Place

Complete = Callable[[Sequence[str], int], Sequence[Completion]]
"""Prompts, and the number of the first in the whole run (from 0; a sampler's seeds follow from it) -> completions."""


@dataclass(frozen=True)
class Settings:
    """What the prompts and the choice depend on; the defaults are Stanford's. A value out of range is a ValueError."""

    seed: int = 0
    """Of all draws: same seed, same tasks."""
    shots: int = 3
    """Seed tasks shown in each prompt."""
    tasks: int = 20
    """Length of the list that the prompt asks for, the seed tasks shown included."""
    batch_size: int = 5
    """Prompts completed at once, a round."""
    threshold: float = THRESHOLD
    """ROUGE-L F with a seed or a kept task above which an instruction is dropped."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed} must not be negative")
        if self.shots < 1:
            raise ValueError(f"shots = {self.shots} must be at least 1: the demonstrations show the form")
        if self.tasks <= self.shots:
            raise ValueError(
                f"tasks = {self.tasks} must be more than shots = {self.shots}, with which the list begins; "
                "raise --tasks or lower --shots"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size} must be at least 1")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold = {self.threshold} must be between 0 and 1, as F is")


class SelfInstruct:
    """The stream of tasks, round by round.

    Args:
        preamble: what stands above the demonstrations.
        fits: whether there is room for a prompt; demonstrations are drawn until there is.

    Raises:
        ValueError: fewer seeds than demonstrations.
    """

    def __init__(
        self,
        seeds: Sequence[Record],
        settings: Settings = Settings(),
        *,
        preamble: str = PREAMBLES["full"],
        fits: Callable[[str], bool] = lambda prompt: True,
    ) -> None:
        if len(seeds) < settings.shots:
            raise ValueError(
                f"{len(seeds)} seed tasks for prompts that show {settings.shots}: add seeds, or lower shots to "
                f"{len(seeds)}"
            )
        self.seeds, self.settings, self.preamble, self.fits = seeds, settings, preamble, fits
        self.pool = Pool(seeds, settings.threshold)

    def identity(self) -> dict[str, Any]:
        """What a journal must have been begun with: the settings, and a digest of seeds and preamble."""
        content = [[task.instruction, task.input, task.output] for task in self.seeds] + [[self.preamble]]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        return asdict(self.settings) | {"seeds_and_preamble": digest}

    def prompts(self, number: int) -> tuple[list[str], int]:
        """The prompts of a round, and how many were drawn anew."""
        first = self.settings.batch_size * (number - 1)
        drawn = [
            draw_prompt(
                self.seeds,
                request,
                preamble=self.preamble,
                shots=self.settings.shots,
                tasks=self.settings.tasks,
                seed=self.settings.seed,
                fits=self.fits,
            )
            for request in range(first, first + self.settings.batch_size)
        ]
        return [prompt for prompt, _ in drawn], sum(redraws for _, redraws in drawn)

    def round(self, number: int, complete: Complete) -> Round:
        """Do a round. Those before it must have been done or recalled."""
        prompts, redraws = self.prompts(number)
        completions = complete(prompts, self.settings.batch_size * (number - 1))
        if len(completions) != len(prompts):
            raise ValueError(f"{len(completions)} completions for {len(prompts)} prompts: give one per prompt")
        dropped: Counter[str] = Counter()
        kept: list[Kept] = []
        for completion in completions:
            tasks, no_tasks = parse_completion(completion, shots=self.settings.shots, tasks=self.settings.tasks)
            dropped += no_tasks
            for task in tasks:
                if (reason := reason_to_drop(task)) is not None:
                    dropped[reason] += 1
                elif (taken := self.pool.take(task)) is None:
                    dropped["similar"] += 1
                else:
                    kept.append(taken)
        return Round(number, len(prompts), redraws, dropped, kept)

    def recall(self, done: Round) -> None:
        """Take in a round that was done before."""
        for kept in done.kept:
            self.pool.recall(kept)


def make_tasks(
    work: SelfInstruct,
    journal: Journal,
    complete: Complete,
    *,
    count: int,
    give_up: int,
    watch: Callable[[Round], None] = lambda done: None,
) -> list[Kept]:
    """Do rounds until `count` tasks are kept, or `give_up` requests in a row gave none; the first `count` of them.

    Args:
        journal: the rounds done so far; grows by each.
        watch: called after each round.
    """
    for done in journal.rounds:
        work.recall(done)
    kept = journal.kept
    while len(kept) < count and barren_requests(journal.rounds) < give_up:
        done = work.round(len(journal.rounds) + 1, complete)
        journal.append(done)
        kept += done.kept
        watch(done)
    return kept[:count]


def barren_requests(rounds: Sequence[Round]) -> int:
    """Requests since the last round that kept a task."""
    barren = 0
    for done in reversed(rounds):
        if done.kept:
            break
        barren += done.requests
    return barren


def write_tasks(path: Path, tasks: Sequence[Kept]) -> None:
    """Write the tasks as one JSON list, Stanford's form, which `load_records` reads."""
    write_whole(path, _listed(tasks))


def check_unchanged(path: Path, tasks: Sequence[Kept]) -> None:
    """Make sure that writing tasks would lose nothing: the file is not there, or is what `write_tasks` wrote of them.

    Args:
        tasks: all that were kept; the file may hold the first so many.

    Raises:
        FileError: it holds anything else, such as a change by hand.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    n_tasks = content.count(b"\n  {\n")  # within a string a newline is an escape
    if content != _listed(tasks[:n_tasks]):
        raise Place(path).unsuitable(
            "it differs from what its journal gives, and would be overwritten", "move it away, or name another --out"
        )


def _listed(tasks: Sequence[Kept]) -> bytes:
    rows = [task.to_row() for task in tasks]
    return (json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
